"""What rows come as: lines, ids, nulls, folders. Without an engine of vLLM."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints.images import make_image
from PIL import Image

from adaptvis_vllm import cli
from adaptvis_vllm.batch import Settings, run
from adaptvis_vllm.batch.actor import DatasetActor
from adaptvis_vllm.batch.folder import endings
from adaptvis_vllm.batch.inputs import decode, merged, open_input
from adaptvis_vllm.batch.job import job_folder
from adaptvis_vllm.evaluation.datasets import own
from adaptvis_vllm.files.lines import DEPTH, BadRow, dumps, read_lines
from adaptvis_vllm.offline.schema import answered_row, output_row, parse_row, row_id_of
from adaptvis_vllm.offline.stream import Answer
from adaptvis_vllm.steering.report import MODE_OFF, Report

REPORT = Report("off", reason=MODE_OFF).as_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        make_image(number).save(tmp_path / f"{number}.png")
    return tmp_path


def line(row_id: Any, **fields: Any) -> bytes:
    row = {"id": row_id, "image": "0.png", "question": "Where?", "answer": "left"}
    return json.dumps(row | fields).encode() + b"\n"


def strict(text: bytes) -> Any:
    """The value of strict JSON in UTF-8, and of nothing else."""

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    value = json.loads(text.decode(), parse_constant=refused)
    json.dumps(value, ensure_ascii=False).encode()  # lone surrogates
    return value


class Echo:
    """An engine that answers at once, for what happens before and after one.

    answered: ids. logprob: of its token.
    """

    window = 8

    def __init__(self, folder: Path, text: str = "é", logprob: float = -0.5) -> None:
        self.folder, self.text, self.logprob = folder, text, logprob
        self.queued: list[tuple[str, Any]] = []
        self.answered: list[Any] = []
        self.starts = 0

    def __call__(self) -> Echo:
        self.starts += 1
        return self

    def prepare(self, value: Any) -> Any:
        return parse_row(value, self.folder)

    def enqueue(self, prepared: Any) -> str:
        self.answered.append(prepared.id)
        self.queued.append((str(len(self.answered)), prepared))
        return self.queued[-1][0]

    def step(self) -> list[tuple[str, Any]]:
        finished, self.queued = self.queued, []
        return finished

    def answer(self, prepared: Any, output: Any) -> Answer:
        said = SimpleNamespace(text=self.text, token_ids=[1], finish_reason="stop")
        return Answer(answered_row(prepared.id, said, REPORT, [[[1, self.logprob]]]), 1)

    def refuse(self, value: Any, error: Exception) -> Answer:
        return Answer(output_row(row_id_of(value), error=str(error)), error=str(error))

    def tokens(self) -> dict[str, int]:
        return {}

    def rebuild(self) -> None: ...


def answers(
    path: Path, suffix: str, engine: Echo | None = None, overwrite: bool = False, **settings: Any
) -> list[Any]:
    """Output rows of a job on `path`; it must be readable, and complete when it goes on."""
    out = path.with_name(f"out-{path.stem}{suffix}")
    engine = engine or Echo(path.parent)
    options = Settings({}, 0, stub=engine, **settings)
    run(path, out, options, overwrite=overwrite)
    run(path, out, options, resume=True)
    assert engine.starts == 1
    strict(out.with_name(out.name + ".summary.json").read_bytes())
    if suffix == ".parquet":
        return pq.read_table(pa.BufferReader(out.read_bytes())).to_pylist()
    return [strict(text) for text in out.read_bytes().splitlines()]


# ---- lines ---------------------------------------------------------------------------

LATIN1 = '{"id": "café", "image": "0.png", "question": "Où?", "answer": "là"}\n'.encode("latin-1")
BAD_LINES = {
    "Latin-1": (LATIN1, "is not UTF-8: byte 12 is 0xe9"),
    "half a character": (line(0)[:-3] + "é".encode()[:1] + b'"}\n', "is not UTF-8"),
    "a surrogate in UTF-8": (b'{"id": "\xed\xa0\xbd"}\n', "is not UTF-8"),
    "UTF-16 among UTF-8": ('{"id": 1}'.encode("utf-16") + b"\n", "is not UTF-8"),
    "zeros": (b"\0" * 50 + b"\n", "is not JSON"),
    "cut off": (line(1)[:30] + b"\n", "is not JSON: Unterminated string"),
    "5,000 digits": (b'{"id": ' + b"9" * 5000 + b"}\n", "holds a number of more than 4300 digits"),
    "deep": (b"[" * 100_000 + b"]" * 100_000 + b"\n", f"is nested more than {DEPTH} levels deep"),
    "rather deep": (line([[]])[:-2] + b', "x": ' + b"[" * 150 + b"]" * 150 + b"}\n", "nested"),
    "half an id": (line("x\ud83d"), "id is no Unicode text"),
    "an id beyond all numbers": (b'{"id": 1e999}\n', "id must be finite, not inf"),
    "a list": (b"[1, 2]\n", "must hold an object, not list"),
    "a text": (b'"question"\n', "must hold an object, not str"),
    "nothing": (b"null\n", "must hold an object, not NoneType"),
    "two objects": (b'{"id": 1} {"id": 2}\n', "is not JSON: Extra data"),
}


def mixed(path: Path) -> dict[int, str]:
    """A file of good and bad lines, empty ones between; line number -> reason."""
    with path.open("wb") as out:
        out.write(b"\xef\xbb\xbf" + line("first") + b"\n  \r\n\xef\xbb\xbf\n")
        number, reasons = 5, {}
        for name, (text, reason) in BAD_LINES.items():
            out.write(
                text + b"\xef\xbb\xbf" + line(f"after {name} \u2028\x85").replace(b"\n", b"\r\n")
            )
            reasons[number] = reason
            number += 2
    return reasons


def test_bad_lines(folder: Path) -> None:
    """One decoder for `generate`, `reference`, `batch` and `eval`: the same rows and reasons."""
    path = folder / "in.jsonl"
    reasons = mixed(path)
    rows = list(read_lines(path))
    bad = [row for row in rows if isinstance(row, BadRow)]
    for error, (number, reason) in zip(bad, reasons.items(), strict=True):
        assert str(error).startswith(f"line {number}")
        assert reason in str(error)
    good = [row for row in rows if not isinstance(row, BadRow)]
    assert [row["id"] for row in good] == ["first", *(f"after {n} \u2028\x85" for n in BAD_LINES)]
    assert [row_id_of(row) for row in bad if row_id_of(row)] == ["x\\ud83d"]

    source = open_input(path, folder / "listing")
    assert (source.total, source.kind) == (len(rows), "rows")
    for pieces in (source.pieces, *(merged(source.pieces, size) for size in (1, 16, 5000))):
        found = [decode(raw) for piece in pieces for _, raw in piece.read()]
        assert list(map(str, found)) == list(map(str, rows))

    benchmark = own.from_path(path)
    assert [q.id for q in benchmark.questions] == [row["id"] for row in good]
    for refused, error in zip(benchmark.refused, bad, strict=True):
        assert refused.error.endswith(f": {error}")


def test_line_numbers_of_pieces(folder: Path) -> None:
    """Empty lines count in a line's number, wherever the pieces begin."""
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(b"\n" * (n % 4) + b"%d\n" % n for n in range(1000)))
    expected = list(map(str, read_lines(path)))
    pieces = open_input(path, folder / "listing").pieces
    assert len(pieces) > 50
    for parts in (pieces, merged(pieces, 100)):
        assert [str(decode(raw)) for p in parts for _, raw in p.read()] == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(encoding: str, folder: Path) -> None:
    """What Windows' editors and shells write is read, in generate, batch and eval."""
    path = folder / "in.jsonl"
    rows = [json.loads(line(n, question=f"Où, \u010a? {n}")) for n in (1, 2)]
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("\r\n".join([texts[0], "", texts[1], ""]).encode(encoding))
    assert list(read_lines(path)) == rows
    assert [q.question for q in own.from_path(path).questions] == [r["question"] for r in rows]
    source = open_input(path, folder / "listing")
    assert [decode(raw) for piece in source.pieces for _, raw in piece.read()] == rows
    assert source.path == path


def test_utf16_with_half_a_character(folder: Path) -> None:
    path = folder / "in.jsonl"
    text = (
        '{"id": 1, "question": "a"}\n{"id": 2, "question": "\ud83d"}\n{"id": 3, "question": "b"}\n'
    )
    path.write_bytes(text.encode("utf-16", "surrogatepass") + b"\0")
    rows = answers(path, ".jsonl")
    assert [row["id"] for row in rows] == [1, None, 3, None]
    assert "line 2 is not JSON" in rows[1]["error"]
    assert "line 4 is not JSON" in rows[3]["error"]
    path.write_bytes(text.encode("utf-16", "surrogatepass"))  # another input
    with pytest.raises(ValueError, match="belongs to another job"):
        run(path, folder / "out-in.jsonl", Settings({}, 0, stub=Echo(folder)), resume=True)


def test_files_that_generate_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "in.jsonl"
    path.write_bytes(line(1))
    shutil.copy(path, folder / "in.parquet")
    for source, output, message in (
        (path, path, "is the input"),
        (path, folder / "sub/../in.jsonl", "is the input"),
        (folder / "in.parquet", folder / "out.jsonl", "must be JSONL; `adaptvis batch` reads Parq"),
    ):
        (folder / "sub").mkdir(exist_ok=True)
        words = ["--model", "none", "--input", str(source), "--output", str(output)]
        for name in ("generate", "reference"):
            assert cli.main([name, *words]) == 1
            assert message in capsys.readouterr().err
    assert path.read_bytes() == line(1)


# ---- ids -----------------------------------------------------------------------------

DAY, ZONE = datetime.date(2024, 1, 2), datetime.timezone(datetime.timedelta(hours=2))
NAME = uuid.UUID("6334d452-5fa1-4a3e-bb3d-b5fcf4c2ad4c")
IDS: dict[str, tuple[pa.Array, list[Any]]] = {
    "dates": (pa.array([DAY, None]), ["2024-01-02", None]),
    "dates in ms": (pa.array([DAY], pa.date64()), ["2024-01-02"]),
    "timestamps": (
        pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5, 6)]),
        ["2024-01-02T03:04:05.000006"],
    ),
    "with nanoseconds": (
        pa.array([10**18, 10**18 + 1], pa.timestamp("ns")),
        ["2001-09-09T01:46:40", "2001-09-09T01:46:40.000000001"],
    ),
    "with a zone": (
        pa.array([datetime.datetime(2024, 1, 2, tzinfo=ZONE)], pa.timestamp("s", "+02:00")),
        ["2024-01-02T00:00:00+02:00"],
    ),
    "times": (pa.array([datetime.time(1, 2, 3)]), ["01:02:03"]),
    "durations": (pa.array([datetime.timedelta(days=1, seconds=1)]), ["P1DT1S"]),
    "decimals": (pa.array([decimal.Decimal("1.50")]), ["1.50"]),
    "bytes": (pa.array([b"\xff\x00", b"ab"]), ["ff00", "6162"]),
    "bytes of one length": (pa.array([b"\xff\x00"], pa.binary(2)), ["ff00"]),
    "UUIDs": (pa.array([NAME.bytes], pa.uuid()), [str(NAME)]),
    "numbers": (pa.array([1.5, float("nan"), None, 2.0]), [1.5, None, None, 2.0]),
    "half numbers": (pa.array([1.5, None], pa.float16()), [1.5, None]),
    "large whole numbers": (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
    "whole numbers": (pa.array([1, None, -(2**63)]), [1, None, -(2**63)]),
    "truths": (pa.array([True, None]), [True, None]),
    "categories": (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    "nothing": (pa.nulls(2), [None, None]),
    "structs": (
        pa.array([{"day": DAY, "raw": b"\1", "n": None, "x": [1.5]}]),
        [{"day": "2024-01-02", "raw": "01", "n": None, "x": [1.5]}],
    ),
    "maps": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), [[["a", 1]]]),
}
# What Python or JSON has no value for -> its reason; all else of the row is fine.
NO_IDS: dict[str, tuple[pa.Array, str]] = {
    "infinity": (pa.array([float("inf")]), "id must be finite, not inf"),
    "a far year": (pa.array([10**12], pa.timestamp("s")), "id cannot be read: "),
    "a far day": (pa.array([10**9], pa.date32()), "id cannot be read: "),
    "no UTF-8": (
        pa.StringArray.from_buffers(1, *map(pa.py_buffer, (b"\0\0\0\0\2\0\0\0", b"\xff\xfe"))),
        "id cannot be read: ",
    ),
    "infinity inside": (pa.array([{"x": [float("-inf")]}]), "id must be finite, not -inf"),
}


def parquet(path: Path, ids: pa.Array, **columns: pa.Array) -> Path:
    asked = {"question": pa.array(["Where?"] * len(ids))} | columns
    pq.write_table(pa.table({"id": ids} | asked), path)
    return path


@pytest.mark.parametrize("name", IDS)
def test_ids(name: str, tmp_path: Path) -> None:
    """Of every type, in JSON as the README says, and in Parquet."""
    ids, expected = IDS[name]
    path = parquet(tmp_path / "in.parquet", ids)
    rows = answers(path, ".jsonl")
    assert [row["id"] for row in rows] == expected
    assert all(type(r["id"]) is type(e) for r, e in zip(rows, expected, strict=True))
    assert [row["error"] for row in rows] == [None] * len(ids)
    whole = all(i is None or (type(i) is int and i < 2**63) for i in expected)
    as_text = [
        i if i is None or whole or isinstance(i, str) else dumps(i).decode() for i in expected
    ]
    assert [row["id"] for row in answers(path, ".parquet")] == as_text


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", NO_IDS)
def test_ids_that_cannot_be(name: str, suffix: str, tmp_path: Path) -> None:
    """An error row before it costs an answer; its neighbours are answered."""
    bad, reason = NO_IDS[name]
    ids = pa.concat_arrays([bad.slice(0, 0), bad, pa.nulls(1, bad.type)])
    path = parquet(tmp_path / "in.parquet", ids)
    engine = Echo(tmp_path)
    first, second = answers(path, suffix, engine)
    assert reason in first["error"]
    assert first["text"] is None
    assert second["error"] is None
    assert engine.answered == [None]


def test_text_that_is_not_utf8_in_another_column(tmp_path: Path) -> None:
    """The row keeps its id."""
    texts = pa.StringArray.from_buffers(
        2, *map(pa.py_buffer, (b"\0\0\0\0\2\0\0\0\4\0\0\0", b"\xff\xfeok"))
    )
    path = parquet(tmp_path / "in.parquet", pa.array([DAY, DAY]), question=texts)
    first, second = answers(path, ".jsonl")
    assert (first["id"], second["id"]) == ("2024-01-02", "2024-01-02")
    assert "question cannot be read: 'utf-8' codec" in first["error"]
    assert second["error"] is None
    benchmark = own.from_path(
        parquet(
            tmp_path / "own.parquet",
            pa.array([DAY, DAY]),
            question=texts,
            image=pa.array(["a.png"] * 2),
            answer=pa.array(["left"] * 2),
        )
    )
    assert [q.id for q in benchmark.questions] == ["2024-01-02"]
    assert "row 1: question cannot be read" in benchmark.refused[0].error


def test_one_column_for_two_fields(folder: Path) -> None:
    path = folder / "in.parquet"
    pq.write_table(pa.table({"name": ["0.png", "1.png"], "question": ["?", "?"]}), path)
    columns = {"id": "name", "image": "name"}
    assert [row["id"] for row in answers(path, ".jsonl", columns=columns)] == ["0.png", "1.png"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_ids_of_lines(suffix: str, tmp_path: Path) -> None:
    """Any JSON value; in Parquet text, unless all are whole numbers of 64 bits."""
    ids = ["é", 1, 1.5, 2**70, True, None, {"a": [1]}, ["x"], "NaN", "\u2028"]
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": i, "question": "?"}) for i in ids]
    path.write_text("\n".join([*lines, '{"id": NaN, "question": "?"}']))
    found = [row["id"] for row in answers(path, suffix)]
    if suffix == ".parquet":
        ids = [i if isinstance(i, str | None) else json.dumps(i) for i in ids]
    assert found == [*ids, None]


def test_output_is_strict_json(tmp_path: Path) -> None:
    """Whatever an engine says: -inf as vLLM's server writes it, half a character written out."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": 1, "question": "?"}')
    for suffix in (".jsonl", ".parquet"):
        (row,) = answers(path, suffix, Echo(tmp_path, "\udce9"), logprobs=1, overwrite=True)
        assert row["text"] == "\\udce9"
        engine = Echo(tmp_path, "é", float("nan"))
        (row,) = answers(path, suffix, engine, logprobs=1, overwrite=True)
        ((entry,),) = row["logprobs"]
        assert (entry["logprob"] if suffix == ".parquet" else entry[1]) is None
    step = {7: SimpleNamespace(logprob=float("-inf"), rank=1)}
    said = SimpleNamespace(text="", token_ids=[7], finish_reason="stop", logprobs=[step])
    output = SimpleNamespace(outputs=[said], adaptvis=None)
    assert output_row(1, output, logprobs=True)["logprobs"] == [[[7, -9999.0]]]


# ---- nulls ---------------------------------------------------------------------------

ASKED = {"image": "0.png", "question": "?"}
NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": None, "temperature": None, "seed": None}, (16, 0.0, None)),
        ({"max_tokens": NAN, "temperature": NAN, "seed": NAN}, (16, 0.0, None)),
        ({"max_tokens": 16.0, "temperature": 1, "seed": 2.0}, (16, 1.0, 2)),
        ({"max_tokens": decimal.Decimal("3"), "seed": decimal.Decimal("4.0")}, (3, 0.0, 4)),
        ({"prompt": None, "messages": None, "video": None, "images": None}, (16, 0.0, None)),
        ({"adaptvis": None, "id": None}, (16, 0.0, None)),
    ],
)
def test_null_is_absent(fields: dict[str, Any], expected: Any, folder: Path) -> None:
    row = parse_row(ASKED | fields, folder)
    assert (row.max_tokens, row.temperature, row.seed) == expected
    assert type(row.max_tokens) is int
    assert len(row.images) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": None}, "image is null"),
        ({"image": NAN}, "image is null"),
        ({"image": {"bytes": None, "path": None}}, "image is null"),
        ({"image": None, "images": None, "video": None}, "image is null"),
        ({"images": ["0.png", None]}, r"images\[1\] is null"),
        ({"images": ["0.png", {"bytes": None, "path": None}]}, r"images\[1\] is null"),
        ({"video": ["0.png", NAN]}, r"video\[1\] is null"),
        ({"question": None}, "exactly one of question, prompt, messages is needed"),
        ({"max_tokens": 16.5}, "max_tokens must be a whole number >= 1, not 16.5"),
        ({"max_tokens": float("inf")}, "max_tokens must be a whole number >= 1, not inf"),
        ({"max_tokens": True}, "max_tokens must be a whole number"),
        ({"max_tokens": "16"}, "max_tokens must be a whole number"),
        ({"temperature": float("inf")}, "temperature must be a number from 0 to 2, not inf"),
        ({"adaptvis": {"alpha": NAN}}, "alpha must be a number"),
        (
            {"question": "half \ud83d"},
            r"question is no Unicode text: character 6 of 'half \\ud83d'",
        ),
    ],
)
def test_null_is_an_error(fields: dict[str, Any], message: str, folder: Path) -> None:
    row = {k: v for k, v in ASKED.items() if not (k == "image" and {"images", "video"} & {*fields})}
    with pytest.raises(ValueError, match=message):
        parse_row(row | fields, folder)


MESSAGES = [
    ([{"type": "image", "image": "0.png"}], 1, None),
    ([{"type": "image", "image": {"bytes": None, "path": "0.png"}, "text": None}], 1, None),
    ([{"type": "image", "image": {"path": "0.png"}}, {"type": "text", "text": "?"}], 1, None),
    ([{"type": "image_url", "image_url": {"url": "0.png"}, "image": None}], 1, None),
    ([{"type": "text", "text": "?", "image": None, "image_url": None}], 0, None),
    (["?", {"type": "text", "text": "?"}], 0, None),
    ([{"type": "image", "image": None}], 0, r"messages\[0\].content: image is null"),
    ([{"type": "image"}], 0, "image is null"),
    ([{"type": "image_url", "image_url": {"url": None}}], 0, "image_url is null"),
    ([None], 0, r"messages\[0\].content\[0\] is null"),
    ([{"type": "text", "text": "\ud83d"}], 0, r"messages\[0\].content is no Unicode text"),
    ("\ud83d", 0, r"messages\[0\].content is no Unicode text"),
]


@pytest.mark.parametrize(("content", "images", "message"), MESSAGES)
def test_nulls_in_messages(content: Any, images: int, message: str | None, folder: Path) -> None:
    """Structs of Arrow have all fields; rows that `datasets` writes as JSON have them as nulls."""
    row = {"messages": [{"role": "user", "content": content, "name": None}], "image": None}
    if message is not None:
        with pytest.raises(ValueError, match=message):
            parse_row(row, folder)
        return
    (found,) = parse_row(row, folder).messages or []
    assert set(found) == {"role", "content"}
    assert (
        sum(isinstance(p, dict) and p.get("type") == "image_pil" for p in found["content"])
        == images
    )
    for part in found["content"]:
        assert not isinstance(part, dict) or None not in part.values()


def test_message_without_a_role(folder: Path) -> None:
    for message in ({"content": "?"}, {"role": None, "content": "?"}, {"role": 1}):
        with pytest.raises(ValueError, match=r"messages\[0\].role must be a text"):
            parse_row({"messages": [message]}, folder)


def test_pandas(folder: Path) -> None:
    """Missing values as pandas writes them: Parquet, JSON, and JSON of its dicts."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "id": [1, 2, None],
            "image": ["0.png", "1.png", "0.png"],
            "question": ["?", "?", "?"],
            "max_tokens": [3, None, 5],
            "seed": [None, 7, None],
            "temperature": [0.5, None, None],
            "adaptvis": [
                {"alpha": 2.0},
                None,
                {"alpha_low": 0.5, "alpha_high": 2.0, "threshold": 0.4},
            ],
        }
    )
    frame.to_parquet(folder / "parquet.parquet")
    frame.to_json(folder / "json.jsonl", orient="records", lines=True)
    dicts = [json.dumps(row) for row in frame.to_dict("records")]
    assert "NaN" in "".join(dicts)
    (folder / "dicts.jsonl").write_text("\n".join(dicts))
    for name in ("parquet.parquet", "json.jsonl", "dicts.jsonl"):
        pieces = open_input(folder / name, folder / "listing").pieces
        rows = [parse_row(decode(raw), folder) for p in pieces for _, raw in p.read()]
        assert [row.id for row in rows] == [1, 2, None]
        assert [row.max_tokens for row in rows] == [3, 16, 5]
        assert [row.seed for row in rows] == [None, 7, None]
        assert [row.temperature for row in rows] == [0.5, 0, 0]
        assert [row.steering and row.steering.mode for row in rows] == ["scaling", None, "adaptive"]
    frame.loc[1, "image"] = None
    frame.to_parquet(folder / "image.parquet")
    answered = answers(folder / "image.parquet", ".jsonl")
    assert [row["error"] is None for row in answered] == [True, False, True]
    assert "image is null" in answered[1]["error"]


def test_datasets(folder: Path) -> None:
    """Pictures in columns, lists and messages as the library `datasets` writes them."""
    import datasets

    picture = Image.open(folder / "0.png")
    message = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    content = {"type": datasets.Value("string"), "image": datasets.Image()}
    content |= {"text": datasets.Value("string")}
    shape = [{"role": datasets.Value("string"), "content": [content]}]
    message[0]["content"].append({"type": "text", "text": "?", "image": None})
    tables: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "messages": ({"messages": message}, {"messages": shape}),
        "image": (
            {"image": picture, "question": "?"},
            {"image": datasets.Image(), "question": datasets.Value("string")},
        ),
        "images": (
            {"images": [picture, picture], "question": "?"},
            {"images": [datasets.Image()], "question": datasets.Value("string")},
        ),
    }
    for name, (row, features) in tables.items():
        path = folder / f"{name}.parquet"
        table = datasets.Dataset.from_list([row, row], features=datasets.Features(features))
        table.to_parquet(path)
        pieces = open_input(path, folder / "listing").pieces
        for _, raw in (found for piece in pieces for found in piece.read()):
            parsed = parse_row(decode(raw), folder)
            parts = parsed.messages[0]["content"] if parsed.messages else []
            pictures = [part["image_pil"] for part in parts if part["type"] == "image_pil"]
            assert len(pictures) == (2 if name == "images" else 1)
            assert all(p.tobytes() == picture.convert("RGB").tobytes() for p in pictures)


# ---- folders -------------------------------------------------------------------------


def test_folder(folder: Path) -> None:
    """Pictures of every format that vLLM reads; what is skipped is told."""
    pictures = folder / "pictures"
    for name in ("", "__MACOSX", ".ipynb_checkpoints", "inner/.git", "inner/deep"):
        (pictures / name).mkdir(parents=True)
    for name in ("a.png", "B.PNG", "inner/deep/c.JPG", "inner/d.jfif", "e.apng"):
        Image.new("RGB", (8, 8)).save(pictures / name, "PNG" if "p" in name.lower()[2:] else "JPEG")
    for name in ("._a.png", "__MACOSX/a.png", ".ipynb_checkpoints/a-checkpoint.png", ".h.png"):
        shutil.copy(pictures / "a.png", pictures / name)
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "README").write_text("no picture")
    (pictures / "drawing.EPS").write_text("%!PS-Adobe")
    (pictures / "lost.png").symlink_to(pictures / "nowhere.png")
    os.mkfifo(pictures / "pipe.png")
    (pictures / "inner/again").symlink_to(pictures)
    defaults = {"question": "?"}
    engine = Echo(pictures)
    engine.prepare = lambda value: parse_row(value | defaults, pictures)  # type: ignore[method-assign]
    rows = answers(pictures, ".jsonl", engine)
    assert [row["id"] for row in rows] == [
        "B.PNG",
        "a.png",
        "e.apng",
        "inner/d.jfif",
        "inner/deep/c.JPG",
    ]
    assert not [row["error"] for row in rows if row["error"]]
    out = folder / "out-pictures.jsonl"
    summary = json.loads((folder / "out-pictures.jsonl.summary.json").read_text())
    assert summary["skipped"] == {
        "hidden": 5,
        "no picture by its ending": 2,
        "a format that vLLM does not read": 1,
        "no file that can be read": 2,
        "a link to a folder": 1,
    }
    again = open_input(pictures, job_folder(out) / "listing.jsonl")
    assert again.skipped["hidden"][1][:2] == ["._a.png", ".h.png"]


def test_dataset(folder: Path) -> None:
    """Rows of a user's Ray dataset: the same ids, nulls and bad rows."""
    table = pa.table(
        {
            "id": pa.array([DAY, DAY, None]),
            "image": ["0.png", None, "1.png"],
            "question": ["?", "?", "?"],
            "max_tokens": [3.0, None, None],
            "label": ["a", "b", "c"],
        }
    )
    actor = DatasetActor(Echo(folder), "rows", False, ("label",))
    try:
        rows = actor(table).to_pylist()
    finally:
        actor.engine.close()
    assert [row["id"] for row in rows] == ["2024-01-02", "2024-01-02", None]
    assert [row["label"] for row in rows] == ["a", "b", "c"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert "image is null" in rows[1]["error"]


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("")
    with pytest.raises(ValueError, match=r"no pictures below .*; 1 skipped, no picture .*: a\.txt"):
        open_input(tmp_path / "in", tmp_path / "listing.jsonl")


def test_every_format_of_pillow(tmp_path: Path) -> None:
    """What Pillow can write here: read where vLLM reads it, else skipped."""
    from vllm.multimodal.media.image import ImageMediaIO

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    written = set()
    for ending, kind in sorted(Image.registered_extensions().items()):
        for mode in ("RGB", "L", "P", "1"):
            try:
                Image.new(mode, (32, 32)).save(pictures / f"a{ending}", kind)
                written.add(ending)
                break
            except (OSError, KeyError, ValueError):
                (pictures / f"a{ending}").unlink(missing_ok=True)
    source = open_input(pictures, tmp_path / "listing.jsonl")
    listed = [decode(raw)["image"] for piece in source.pieces for _, raw in piece.read()]
    for ending in sorted(written):
        path = pictures / f"a{ending}"
        try:
            ImageMediaIO().load_bytes(path.read_bytes())
            readable = True
        except ValueError:
            readable = False
        assert (path.name in listed) == readable, ending
    assert {".png", ".jpg", ".webp", ".avif", ".jp2", ".tiff", ".mpo", ".ico", ".tga"} <= written
    assert not {".eps", ".ps", ".pdf"} & endings()[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_file_names_that_are_not_utf8(suffix: str, tmp_path: Path) -> None:
    """The picture is answered; its id is written out. So are input and output themselves."""
    pictures = os.fsencode(tmp_path / "p") + b"\xe9"
    os.mkdir(pictures)
    for name in (b"caf\xe9.png", "caf\u00e9.png".encode()):
        make_image(0).save(tmp_path / "a.png")
        shutil.copy(tmp_path / "a.png", os.path.join(pictures, name))
    path = Path(os.fsdecode(pictures))
    engine = Echo(path)
    engine.prepare = lambda value: parse_row(value | {"question": "?"}, path)  # type: ignore[method-assign]
    rows = answers(path, suffix, engine)
    assert [row["id"] for row in rows] == ["café.png", "caf\\xe9.png"]
    assert [row["error"] for row in rows] == [None, None]


# ---- own questions of `eval` -----------------------------------------------------------


OWN: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"choices": None, "prompt": None, "images": None, "extra": None}, None),
    ({"choices": NAN}, None),
    ({"id": None}, None),
    ({"image": None}, "image is null"),
    ({"image": NAN}, "image is null"),
    ({"image": None, "images": ["0.png", None]}, r"images\[1\] is null"),
    ({"image": {"bytes": None, "path": None}}, "image is null"),
    ({"choices": "left, right"}, "choices must be a list of texts, not 'left, right'"),
    ({"choices": ["left", None]}, "choices must be"),
    ({"answer": None}, "answer must be"),
    ({"extra": "\ud83d"}, "extra is no Unicode text"),
]


@pytest.mark.parametrize(("fields", "message"), OWN)
def test_own_rows(fields: dict[str, Any], message: str | None, folder: Path) -> None:
    path = folder / "own.jsonl"
    path.write_bytes(line("other") + line(1, **fields))
    benchmark = own.from_path(path)
    assert benchmark.questions[0].id == "other"
    assert len(benchmark.questions) + len(benchmark.refused) == 2
    if message is None:
        assert benchmark.questions[1].id == ("2" if "id" in fields else "1")
        assert benchmark.questions[1].choices == ()
        assert "extra" not in benchmark.questions[1].meta
    else:
        (refused,) = benchmark.refused
        assert re.search(message, refused.error)
        assert (refused.id, refused.split) == ("1", "own")


def test_hidden_files_beside_own_questions(folder: Path) -> None:
    (folder / "mine").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / "mine" / name).write_bytes(line(1))
        (folder / "mine" / f"._{name}").write_bytes(b"\0\5\x16\7")
    assert list(own.from_path(folder / "mine").splits) == ["a", "b"]
