"""Batch jobs in this process: formats, bad rows, failures, what is on disk."""

from __future__ import annotations

import base64
import datetime
import io
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import batch_kills
from support.batch_cases import (
    ENGINE,
    FULL,
    finished,
    make_images,
    mixed,
    read,
    write_questions,
)
from support.batch_cases import run as command
from support.commands import here
from support.garbage import freeze

from adaptvis_vllm.batch import Settings, run
from adaptvis_vllm.batch.inputs import decode, merged, open_input
from adaptvis_vllm.batch.job import Job, job_folder
from adaptvis_vllm.batch.parts import DONE, ERROR, MISSING, Parts, PartWriter
from adaptvis_vllm.batch.progress import Progress
from adaptvis_vllm.batch.summary import REASONS
from adaptvis_vllm.engine.runner.check import NAME
from adaptvis_vllm.offline.engine import VllmEngine
from adaptvis_vllm.offline.schema import parse_row
from adaptvis_vllm.offline.stream import Answer
from adaptvis_vllm.steering.fields import CONFIDENCES

ROWS = 40


@pytest.fixture(autouse=True)
def quick_starts() -> None:
    freeze()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("batch"), ROWS)


@pytest.fixture(scope="module")
def settings(model: Path) -> Settings:
    engine = {
        "model": str(model),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 64 * 2**20,
        "max_num_seqs": 16,
        "block_size": 32,
    }
    return Settings(engine, workers=0)


@pytest.fixture(scope="module")
def folder(questions: Path) -> Path:
    return questions.parent


@pytest.fixture(scope="module")
def expected(questions: Path, settings: Settings) -> list[dict[str, Any]]:
    out = questions.with_name("expected.jsonl")
    summary = run(questions, out, settings)
    assert summary["low"] + summary["high"] == ROWS / 2
    assert summary["low"]
    assert summary["high"]
    return read(out)


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


# ---- formats ---------------------------------------------------------------------------


def test_parquet(
    questions: Path, settings: Settings, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Pictures as bytes, as Hugging Face structs and as data URIs; Parquet out."""
    rows = read(questions)
    files = [(questions.parent / row["image"]).read_bytes() for row in rows]
    pictures = {
        "bytes": pa.array(files),
        "struct": pa.array([{"bytes": raw, "path": None} for raw in files]),
        "uri": pa.array(["data:image/png;base64," + base64.b64encode(r).decode() for r in files]),
    }
    for name, column in pictures.items():
        columns = {
            "id": [row["id"] for row in rows],
            "picture": column,
            "question": [row["question"] for row in rows],
            "adaptvis": [row["adaptvis"] for row in rows],
            "label": ["unused"] * ROWS,
        }
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=17)
        source = open_input(path, tmp_path / "listing", {"image": "picture"})
        values = [decode(raw) for piece in source.pieces for _, raw in piece.read()]
        for value, row in zip(values, rows, strict=True):
            ours, plain = (parse_row(v, questions.parent) for v in (value, row))
            assert ours.images == plain.images
            assert (ours.id, ours.steering) == (plain.id, plain.steering)
        assert source.unused == ("label",)
    out = tmp_path / "out.parquet"
    defaults = {"max_tokens": 3}
    run(path, out, Settings(settings.engine, 0, columns={"image": "picture"}, defaults=defaults))
    table = pq.read_table(out)
    assert table.schema.field("id").type == pa.int64()
    answers = table.to_pylist()
    assert texts(answers) == texts(expected)
    none = {"candidates": None, "confidences": None, "option": None}  # a column has all fields
    for answer, row in zip(answers, expected, strict=True):
        assert answer["adaptvis"] == row["adaptvis"] | none


def test_candidates(settings: Settings, folder: Path, tmp_path: Path) -> None:
    """In JSONL and in Parquet; more than the engine has room for are an error row."""
    asked = ([0.3, 3.0], "2", [0.5, 1, 2])
    rows = [
        {"image": str(folder / "0.png"), "question": "Where?", "adaptvis": {"candidates": alphas}}
        for alphas in asked
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for out in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        assert run(path, out, settings)["errors"] == 1
        found.append(read(out) if out.suffix == ".jsonl" else pq.read_table(out).to_pylist())
    for row in found[1]:  # a column has all fields
        assert row["adaptvis"] is None or row["adaptvis"].pop("option") is None
    for row, other in zip(*found, strict=True):
        assert row == approximately(other)
    good, one, bad = found[0]
    assert [c["alpha"] for c in good["adaptvis"]["candidates"]] == [0.3, 3.0]
    assert len(one["adaptvis"]["candidates"]) == 1
    assert set(good["adaptvis"]["confidences"]) == set(CONFIDENCES)
    assert "candidates must be 1 to 2 alphas, not 3" in bad["error"]


def test_what_pandas_and_datasets_write(
    questions: Path, settings: Settings, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Dates as ids, numbers made floats by missing ones, pictures in structs and in messages."""
    rows = read(questions)
    asked = rows[:4]
    raw = [(questions.parent / row["image"]).read_bytes() for row in asked]
    structs = [{"bytes": data, "path": None} for data in raw]
    text = {"type": "text", "text": asked[1]["question"], "image": None}
    content = [{"type": "image", "image": structs[1], "text": None}, text]
    columns = {
        "id": [datetime.date(2024, 1, 1 + n) for n in range(5)],
        "image": [structs[0], None, structs[2], structs[3], None],
        "question": [asked[0]["question"], None, *(r["question"] for r in asked[2:]), "Where?"],
        "messages": [None, [{"role": "user", "content": content}], None, None, None],
        "max_tokens": [3.0, 3.0, 3.0, None, 3.0],
        "seed": [None, 1.0, None, None, None],
        "adaptvis": [row["adaptvis"] for row in asked] + [None],
    }
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), path)
    for out in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        summary = run(path, out, settings)
        assert summary["errors"] == 1
        found = read(out) if out.suffix == ".jsonl" else pq.read_table(out).to_pylist()
        assert [row["id"] for row in found] == [f"2024-01-0{n + 1}" for n in range(5)]
        assert texts(found)[:3] == texts(expected)[:3]
        assert len(found[3]["token_ids"]) > 3
        assert found[3]["token_ids"][:3] == expected[3]["token_ids"]
        assert "image is null" in found[4]["error"]


def test_openai_ids(settings: Settings, folder: Path, model: Path, tmp_path: Path) -> None:
    """What is no text is an error row, which JSON and Parquet can show; the others are answered."""
    good = openai_lines(folder, model)[0]
    lines = [
        good | {"custom_id": name} for name in ("base", 5, "x\ud83d", None, {"a": 1}, "\u00e9")
    ]
    body = good["body"] | {"messages": [{"role": "user", "content": "\ud83d"}]}
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, [*lines, good | {"body": body}])) + "\n{")
    ids = ["base", 5, "x\\ud83d", None, {"a": 1}, "\u00e9", "plain", None]
    for out in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        summary = run(path, out, settings)
        assert summary["errors"] == 6
        if out.suffix == ".jsonl":
            assert [row["custom_id"] for row in read(out)] == ids
            errors = [row["error"] for row in read(out)]
        else:
            found = pq.read_table(out).to_pylist()
            texts = [i if isinstance(i, str | None) else json.dumps(i) for i in ids]
            assert [row["custom_id"] for row in found] == texts
            errors = [row["error"] and json.loads(row["error"]) for row in found]
        assert [n for n, error in enumerate(errors) if error is None] == [0, 5]
        assert "custom_id is no Unicode text" in errors[2]["error"]["message"]
        assert "body is no Unicode text" in errors[6]["error"]["message"]
        assert "line 8 is not JSON" in errors[7]["error"]["message"]


def test_folder_and_url(settings: Settings, folder: Path, tmp_path: Path) -> None:
    """A folder with one question; the same pictures by URL."""
    pictures = tmp_path / "pictures" / "inner"
    pictures.mkdir(parents=True)
    for number in range(4):
        shutil.copy(folder / f"{number}.png", pictures)
    (pictures / "notes.txt").write_text("no picture")
    defaults = {"question": "Where is the red cat?", "max_tokens": 3}
    out = tmp_path / "out.jsonl"
    files = (tmp_path / "pictures", "-o", out, "--workers", 0, "--model", settings.engine["model"])
    asked = ("--question", defaults["question"], "--max-tokens", defaults["max_tokens"])
    done = here("batch", *files, *asked, *ENGINE)
    assert done.returncode == 0, done.stderr
    assert "1 skipped, no picture by its ending: inner/notes.txt\n" in done.stderr
    assert "skipped      1, no picture by its ending" in done.stdout
    rows = read(out)
    assert [row["id"] for row in rows] == [f"inner/{n}.png" for n in range(4)]
    with served(pictures) as url:
        path = tmp_path / "urls.jsonl"
        lines = [{"id": n, "image": f"{url}/{n}.png"} for n in range(4)]
        lines.append({"id": 4, "image": f"{url}/absent.png"})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        by_url = tmp_path / "url.jsonl"
        summary = run(path, by_url, Settings(settings.engine, 0, defaults=defaults))
    assert summary["errors"] == 1
    assert texts(read(by_url))[:4] == texts(rows)
    assert "404" in read(by_url)[4]["error"]


class served:
    """A folder over HTTP on this machine."""

    def __init__(self, folder: Path) -> None:
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

        handler = partial(Quiet, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def openai_lines(folder: Path, model: Path) -> list[dict[str, Any]]:
    """What `vllm run-batch` takes."""

    def line(name: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
        raw = base64.b64encode((folder / "3.png").read_bytes()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{raw}"}}
        text = {"type": "text", "text": "Where is the red cat?"}
        chat = {"model": str(model), "messages": [{"role": "user", "content": [image, text]}]}
        chat |= {"max_tokens": 4, "temperature": 0} | body
        return {"custom_id": name, "method": "POST", "url": url, "body": chat}

    steer = {"adaptvis_alpha_low": 3.0, "adaptvis_alpha_high": 0.3, "adaptvis_threshold": 0.5}
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A cat?"}]
    return [
        line("plain"),
        line("steered", vllm_xargs=steer),
        line("candidates", vllm_xargs={"adaptvis_candidates": [0.5, 2]}),
        line("text", messages=system),
        line("logprobs", logprobs=True, top_logprobs=3),
        line("seeded", temperature=1.0, seed=5, n=2),
        line("limit", max_tokens=None, max_completion_tokens=2),
        line("stop", stop=["e"], max_tokens=8),
        line("wrong model", model="another"),
        line("wrong steering", vllm_xargs={"adaptvis_alpha": -1}),
        line("streamed", stream=True),
        line("wrong url", url="/v1/nothing"),
        line("too long", messages=[{"role": "user", "content": "word " * 600}]),
        line("no picture", messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]),
    ]  # fmt: skip


def test_openai(settings: Settings, model: Path, folder: Path, tmp_path: Path) -> None:
    """A file of `vllm run-batch` gives what `vllm run-batch` gives."""
    path, out, theirs = (tmp_path / n for n in ("in.jsonl", "out.jsonl", "theirs.jsonl"))
    lines = openai_lines(folder, model)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    module = "vllm.entrypoints.openai.run_batch"
    files = ("-i", str(path), "-o", str(theirs), "--model", str(model))
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *files, *ENGINE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = run(path, out, settings)
    assert summary["errors"] == 6
    for line, row, other in zip(lines, read(out), read(theirs), strict=True):
        name = line["custom_id"]
        assert row["custom_id"] == other["custom_id"] == name
        status = other["response"]["status_code"]
        assert row["response"]["status_code"] == status, done.stderr[-6000:]
        assert shape(row) == shape(other), name
        if row["error"] is not None:
            continue
        body, expected = row["response"]["body"], other["response"]["body"]
        assert body["choices"] == approximately(expected["choices"]), name
        for field in ("model", "object"):
            assert body[field] == expected[field]
        for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert body["usage"][field] == expected["usage"][field]
        assert body.get("adaptvis") == approximately(expected.get("adaptvis")), name


def approximately(value: Any) -> Any:
    """Equal up to rounding."""
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-4)
    if isinstance(value, dict):
        return {k: approximately(v) for k, v in value.items()}
    return [approximately(v) for v in value] if isinstance(value, list) else value


def shape(value: Any) -> Any:
    """Names only."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    return None


# ---- bad rows and failing engines -----------------------------------------------------


def test_bad_rows_and_retry(
    settings: Settings, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 3 with exactly the bad rows; --retry-errors runs only those again."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONWARNDEFAULTENCODING", "1")
    make_images(tmp_path)
    path, reasons = mixed(tmp_path, 90, 0.2)
    out = tmp_path / "out.jsonl"
    done = command("batch", path, "-o", out, "--workers", 0, "--model", model, *ENGINE, code=3)
    assert f"error rows   {len(reasons)}" in done.stdout
    assert "no such file \\u2026" in done.stdout
    locale = [line for line in done.stderr.splitlines() if "EncodingWarning" in line]
    assert not [line for line in locale if "/adaptvis_vllm/" in line]
    first = read(out)
    assert {n for n, row in enumerate(first) if row["error"]} == set(reasons)
    assert all(reason in first[n]["error"] for n, reason in reasons.items())
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["errors"] == len(reasons)
    assert sum(summary["reasons"].values()) == len(reasons)  # the commonest, and others
    assert len(summary["reasons"]) == REASONS
    assert "other" in summary["reasons"]

    out.unlink()  # the same in this process, to go on from
    run(path, out, settings, overwrite=True)
    again = read(out)
    assert [row["error"] is None for row in again] == [row["error"] is None for row in first]
    assert run(path, out, settings, resume=True)["errors"] == len(reasons)
    shutil.copy(tmp_path / "0.png", tmp_path / "absent.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "broken.png")
    summary = run(path, out, settings, retry_errors=True)
    assert summary["this_attempt"]["rows"] == len(reasons)
    mended = {n for n in reasons if first[n]["id"] in ("bad 0", "bad 1")}
    assert summary["errors"] == len(reasons) - len(mended)
    for number, (row, before) in enumerate(zip(read(out), again, strict=True)):
        if number in mended:
            assert row["error"] is None
        elif before["error"] is None:
            assert row == before


def test_failing_step(
    questions: Path,
    settings: Settings,
    expected: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row that makes every step with it fail is found; the others are answered."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    rows = read(questions)
    rows[23]["question"] = "poison " * 20
    path = questions.with_name("poisoned.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    original = GPUModelRunner.execute_model

    def execute_model(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        for request in scheduled.scheduled_new_reqs:
            if len(request.prompt_token_ids) > 80:
                raise FloatingPointError("poisoned")
        return original(self, scheduled, *args, **kwargs)

    monkeypatch.setattr(GPUModelRunner, "execute_model", execute_model)
    out = tmp_path / "out.jsonl"
    summary = run(path, out, settings)
    answers = read(out)
    assert summary["errors"] == 1
    for number, (row, other) in enumerate(zip(answers, expected, strict=True)):
        if number == 23:
            assert "poisoned" in row["error"]
        else:
            assert row["text"] == other["text"]


def test_steps_after_a_failed_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a step fails once or a row makes it fail: a tenth more steps, and no more error
    rows than guilty ones. 400 rows without pictures, 16 at once, about 10 tokens each."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    steps, guilty_prompt = 0, 60
    step, execute = VllmEngine.step, GPUModelRunner.execute_model

    def counted(self: VllmEngine) -> Any:
        nonlocal steps
        steps += 1
        return step(self)

    raised = False

    def once(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal raised
        if steps == 120 and not raised:  # the engine that follows must start
            raised = True
            raise FloatingPointError("once")
        return execute(self, scheduled, *args, **kwargs)

    def guilty(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        if any(len(r.prompt_token_ids) > guilty_prompt for r in scheduled.scheduled_new_reqs):
            raise FloatingPointError("guilty")
        return execute(self, scheduled, *args, **kwargs)

    monkeypatch.setattr(VllmEngine, "step", counted)
    path = tmp_path / "in.jsonl"
    words = ["Where is cat number", "cat " * guilty_prompt]
    rows = [
        {"id": n, "question": f"{words[n == 190]} {n}?", "max_tokens": 10 - n % 3}
        for n in range(400)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts, found = [], []
    for number, broken in enumerate((execute, once, guilty)):
        monkeypatch.setattr(GPUModelRunner, "execute_model", broken)
        steps = 0
        out = tmp_path / f"{number}.jsonl"
        run(path, out, settings)
        counts.append(steps)
        found.append(read(out))
    print("steps:", counts)
    assert max(counts) <= 1.1 * counts[0]
    assert found[1] == found[0]
    assert [row["id"] for row in found[2] if row["error"]] == [190]
    assert "guilty" in found[2][190]["error"]
    assert found[2][:190] + found[2][191:] == found[0][:190] + found[0][191:]


def test_sick_engine(
    questions: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that always fails stops the job, and no row is blamed for good."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("adaptvis_vllm.offline.search.SICK", 2)
    settings = Settings(settings.engine | {"max_num_seqs": 2}, workers=0)
    with monkeypatch.context() as patched:
        execute = GPUModelRunner.execute_model

        def execute_model(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            if {*scheduled.num_scheduled_tokens} <= {NAME}:  # it still starts
                return execute(self, scheduled, *args, **kwargs)
            raise OSError("the device fell off")

        patched.setattr(GPUModelRunner, "execute_model", execute_model)
        with pytest.raises(RuntimeError, match="fell off"):
            run(questions, out, settings)
    assert not out.exists()
    assert run(questions, out, settings, retry_errors=True)["errors"] == 0


def test_deadly_rows(questions: Path, settings: Settings, tmp_path: Path) -> None:
    """In flight at two deaths: answered alone. Alone at two deaths: given up, until retried."""
    out = tmp_path / "out.jsonl"
    with interrupted(questions, out, settings) as folder:
        for lonely in (False, False, True, True):
            writer = PartWriter(folder, 1)
            writer.started([5], lonely)
            if not lonely:
                writer.started([6, 7], False)
            writer.close()
    summary = run(questions, out, settings, resume=True)
    rows = read(out)
    assert "died" in rows[5]["error"]
    assert rows[5]["id"] == 5
    assert summary["errors"] == 1
    assert run(questions, out, settings, retry_errors=True)["errors"] == 0


class interrupted:
    """A job that was started and has answered nothing; its folder."""

    def __init__(self, path: Path, out: Path, settings: Settings) -> None:
        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(path, out, Settings(settings.engine, 0, stub=stop))
        self.folder = job_folder(out)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *_: Any) -> None: ...


# ---- on disk -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip", "zeros"])
def test_damaged_part(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose record a crash of the machine damaged run again, only those."""
    (tmp_path / "mended").touch()
    with monkeypatch.context() as patched:
        patched.setattr(Job, "drop_parts", lambda self: None)
        batch_kills.job(tmp_path)
    out = tmp_path / "out.jsonl"
    expected, folder = read(out), job_folder(out)
    (part,) = folder.glob("*.part")
    raw = bytearray(part.read_bytes())
    middle = len(raw) // 2
    if damage == "cut":
        del raw[middle:]
    elif damage == "flip":
        raw[middle] ^= 1
    else:
        raw[middle : middle + 1000] = bytes(1000)
    part.write_bytes(raw)
    state = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(state | {"complete": False}))
    out.unlink()
    summary = batch_kills.job(tmp_path, "resume")
    assert 0 < summary["this_attempt"]["rows"] < batch_kills.ROWS
    assert read(out) == expected
    assert [row["id"] for row in expected] == list(range(batch_kills.ROWS))
    assert batch_kills.job(tmp_path, "resume") == summary  # what is done is done


def test_killed_while_errors_are_retried(tmp_path: Path) -> None:
    """--retry-errors, SIGKILL at a random moment, --resume: the old error rows are tried again,
    the answered rows are not. 20 times at full size."""
    base = tmp_path / "base"
    base.mkdir()
    assert batch_kills.job(base)["errors"] == batch_kills.BAD
    (base / "mended").touch()
    script, rng = Path(batch_kills.__file__), random.Random(0)
    moments = []
    for kill in range(20 if FULL else 6):
        folder = tmp_path / f"{kill}"
        shutil.copytree(base, folder)
        state = job_folder(folder / "out.jsonl") / "job.json"
        words = [sys.executable, "-P", str(script), str(folder), "retry_errors"]
        process = subprocess.Popen(words)
        # From the moment at which the job is taken up to the moment at which it is done.
        rows = rng.randrange(batch_kills.BAD + 1)
        while process.poll() is None:
            begun = json.loads(state.read_text())["attempt"] == 2
            if begun and finished(folder / "out.jsonl", attempt=2) >= rows:
                break
            time.sleep(0.001)
        process.kill()
        process.wait()
        complete = json.loads(state.read_text())["complete"]
        moments.append(f"{finished(folder / 'out.jsonl', attempt=2)}{' (done)' * complete}")
        summary = batch_kills.job(folder, "resume")
        assert summary["errors"] == 0, moments
        assert complete or summary["this_attempt"]["rows"] <= batch_kills.BAD - rows
        answers = read(folder / "out.jsonl")
        assert [row["id"] for row in answers] == list(range(batch_kills.ROWS))
        assert texts(answers) == [f"answer {number}" for number in range(batch_kills.ROWS)]
    print("rows finished at the kills:", moments)


def test_deaths_before_a_retry_are_forgiven(tmp_path: Path) -> None:
    """Also after a kill; those of the retry itself count."""
    for attempt, lonely in ((1, True), (1, True), (2, False), (3, False)):
        writer = PartWriter(tmp_path, attempt)
        writer.started([0], lonely)
        writer.close()
    writer = PartWriter(tmp_path, 1)
    writer.write([(0, Answer({}, error="died"))])
    writer.close()
    parts = Parts(tmp_path, 1)
    parts.poll()
    parts.forget_errors(2)
    assert parts.status.tolist() == [MISSING]
    assert parts.suspects() == {0: 0}


def test_another_job(questions: Path, settings: Settings, tmp_path: Path) -> None:
    """Changed input, changed settings, a stranger's file, a second process: all refused."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    shutil.copy(questions, path)
    with interrupted(path, out, settings):
        pass
    engine = settings.engine | {"seed": 3}
    with pytest.raises(ValueError, match=r"settings\.engine\.seed was None, is 3"):
        run(path, out, Settings(engine, 0), resume=True)
    with pytest.raises(ValueError, match="--resume"):
        run(path, out, settings)
    path.write_text(path.read_text().replace("red", "blue"))
    with pytest.raises(ValueError, match="sha256"):
        run(path, out, settings, resume=True)
    with pytest.raises(ValueError, match="is the input"):
        run(path, path, settings, overwrite=True)
    assert path.stat().st_size
    stranger = tmp_path / "mine.jsonl"
    stranger.write_text("precious")
    with pytest.raises(ValueError, match="no job's"):
        run(path, stranger, settings, resume=True)
    assert stranger.read_text() == "precious"
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        run(path, tmp_path / "out.csv", settings)


def test_parts(tmp_path: Path) -> None:
    """Twice the same row counts once; a later attempt overrules an error, nothing an answer."""

    def write(attempt: int, key: int, text: str, error: str | None = None) -> None:
        writer = PartWriter(tmp_path, attempt)
        writer.write([(key, Answer({"text": text}, 0 if error else 2, "low", error))])
        writer.close()

    write(1, 0, "first")
    write(2, 0, "second")
    write(2, 0, "bad", "bad")
    write(1, 1, "bad", "bad")
    write(2, 1, "worse", "worse")
    parts = Parts(tmp_path, 3)
    parts.poll()
    assert parts.status.tolist() == [DONE, ERROR, MISSING]
    assert [json.loads(row)["text"] for row in parts.rows()] == ["first", "worse"]
    assert parts.tokens == 2
    write(3, 1, "good")
    parts.poll()
    assert json.loads(parts.row(1)) == {"text": "good"}
    assert (parts.done, parts.errors) == (2, 0)


def test_pieces(tmp_path: Path) -> None:
    """Every line once, empty ones skipped, whatever the size of the pieces."""
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": n, "question": "é" * (n % 50)}) for n in range(1000)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    source = open_input(path, tmp_path / "listing")
    assert (source.total, source.kind) == (1000, "rows")
    for rows in (1, 16, 100, 5000):
        read_back = [(n, decode(raw)) for p in merged(source.pieces, rows) for n, raw in p.read()]
        assert [n for n, _ in read_back] == list(range(1000))
        assert [row["id"] for _, row in read_back] == list(range(1000))


# ---- progress ------------------------------------------------------------------------


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that is drawn over on a terminal, plain lines elsewhere."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("adaptvis_vllm.batch.progress.time.monotonic", lambda: next(clock))
    writer = PartWriter(tmp_path, 1)
    parts = Parts(tmp_path, 10)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out in (Terminal(), io.StringIO()):
        progress = Progress(10, 0, 0, out)
        for key in range(4):
            writer.write([(key, Answer({}, 5, "low" if key else "high"))])
        parts.poll()
        progress.show(parts)
        progress.show(parts, last=True)
        text = out.getvalue()
        assert "4/10 rows" in text
        assert "low 75% high 25%" in text
        assert "0 errors" in text
        assert ("\r" in text) == out.isatty()
        assert re.search(r"\d+:\d\d left|\? left", text)


def test_an_engine_that_cannot_start(model: Path, questions: Path, tmp_path: Path) -> None:
    """A failure with its reason."""
    options = ("--model", model, *ENGINE, "--max-model-len", "100000000")
    done = here("batch", questions, "-o", tmp_path / "o.jsonl", "--workers", 0, *options)
    assert done.returncode == 1
    assert "max_model_len" in done.stderr
