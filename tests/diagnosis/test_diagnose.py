"""`adaptvis diagnose` on a real engine: its figures are those of the maps, and it stops early."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints.images import make_image
from support.benchmark_files import write_all

from adaptvis_vllm import Off, ScalingVis, cli
from adaptvis_vllm.diagnosis import command
from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.datasets import benchmarks
from adaptvis_vllm.offline.runner import RowRunner

COUNT = 8
CAT, BED = [3.0, 4, 20, 25], [10.0, 30, 50, 55]
STEERED = ["--alpha", "3", "--max-tokens", "4"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Own questions, the last of which has no boxes."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for number in range(COUNT):
        make_image(number).save(folder / f"{number}.png")
        row = {
            "id": f"own-{number}",
            "image": f"{number}.png",
            "question": f"Where is the red cat? {number}",
            "answer": "zq"[number % 2],
        }
        boxes = {"cat": CAT, "bed": BED}
        rows.append(row | ({"boxes": boxes} if number < COUNT - 1 else {}))
    write(folder / "own.jsonl", rows)
    return folder / "own.jsonl"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command on the module's engine; returns the folder that it wrote."""
    monkeypatch.setattr(command, "make_llm", lambda args, **options: engine)

    def call(*options: str, status: int = 0) -> Path:
        out = tmp_path / "out"
        assert cli.main(["diagnose", "--model", "tiny", "-o", str(out), *options]) == status
        return out

    return call


def test_shares_are_those_of_the_maps(run: Any, engine: Any, data: Path) -> None:
    """Every number of every question, worked out again, position by position."""
    out = run("--data", str(data), *STEERED)
    with np.load(out / "shares.npz") as arrays:
        found = dict(arrays)
    questions = benchmarks.load(None, str(data)).questions
    assert found["ids"].tolist() == [question.id for question in questions]
    kept: dict[tuple[int, int], Any] = {}

    def see(question: int, steering: int, output: Any) -> None:
        kept[question, steering] = output.adaptvis_maps

    asked = [Off(maps="all"), ScalingVis(3.0, maps="all")]
    texts = answer(engine, questions, asked, max_tokens=4, see=see)
    for number in range(COUNT):
        for steering, when in enumerate(("before", "after")):
            maps = kept[number, steering]
            weights = getattr(maps, when).astype(np.float64)
            assert maps.layers.tolist() == found["layers"].tolist() == [0, 1, 2, 3]
            share = found[f"image_{when}"][number]
            np.testing.assert_allclose(share, weights.sum(-1), rtol=2e-3)
            if number == COUNT - 1:
                assert np.isnan(found[f"boxes_{when}"][number]).all()
                continue
            inside = np.array([covered(box, CAT) for box in maps.boxes])
            boxes = (weights * inside).sum(-1)
            np.testing.assert_allclose(found[f"boxes_{when}"][number], boxes, rtol=2e-3, atol=1e-6)
            part = boxes / weights.sum(-1)
            np.testing.assert_allclose(found[f"inside_{when}"][number], part, rtol=4e-3, atol=1e-6)
            lift = part / inside.mean()
            np.testing.assert_allclose(found[f"lift_{when}"][number], lift, rtol=4e-3, atol=1e-6)
    assert not np.allclose(found["image_before"], found["image_after"], rtol=0.05)
    # The answers are those without maps.
    same = answer(engine, questions, [Off(), ScalingVis(3.0)], max_tokens=4)
    assert [[a.token_ids for a in row] for row in texts] == [
        [a.token_ids for a in row] for row in same
    ]
    given = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert [a["unsteered"] for a in given["answers"]] == [row[0].text for row in same]
    assert [a["steered"] for a in given["answers"]] == [row[1].text for row in same]
    assert [a["objects"] for a in given["answers"]] == [["cat"]] * (COUNT - 1) + [[]]
    heads = json.loads((out / "heads.json").read_text(encoding="utf-8"))
    assert len(heads["heads"]) == 4 * 4
    assert heads["measure"] == "boxes"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"1 of {COUNT} questions have no boxes" in page


def covered(position: Any, box: Any) -> float:
    x0, y0, x1, y1 = map(float, position)
    width = max(0.0, min(x1, box[2]) - max(x0, box[0]))
    height = max(0.0, min(y1, box[3]) - max(y0, box[1]))
    return width * height / ((x1 - x0) * (y1 - y0))


def test_maps_are_not_held_while_an_earlier_answer_runs(engine: Any, tmp_path: Path) -> None:
    """Each is seen when it ends, and gone before the first row, the longest, is done."""
    held: list[weakref.ref[Any]] = []
    order: list[int] = []

    def keep(number: int, output: Any) -> str:
        if number == 0:
            gc.collect()
            assert [ref() for ref in held] == [None] * 5
        held.append(weakref.ref(output.adaptvis_maps))
        order.append(number)
        return f"kept {number}"

    rows = [
        {
            "id": number,
            "question": f"Where is it? {number}",
            "image": make_image(number),
            "max_tokens": 2 if number else 24,
            "adaptvis": Off(maps="all"),
        }
        for number in range(6)
    ]
    found = list(RowRunner(engine, tmp_path, maps=True).outputs(rows, keep))
    assert found == [(number, f"kept {number}") for number in range(6)]
    assert order[-1] == 0


def test_chosen_layers_no_steering_and_bad_rows(
    run: Any, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data.read_text() + '{"id": "bad", "image": "none.png", "question": "?", "answer": "a"}\n'
    data.write_text(rows)
    out = run(
        "--data", str(data), "--map-layers", "1,3", "--by", "lift", "--max-tokens", "2", status=3
    )
    given = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert (given["layers"], given["steered"], given["questions"]) == ([1, 3], None, COUNT)
    assert [error["id"] for error in given["errors"]] == ["bad"]
    printed = capsys.readouterr()
    assert "1 rows are left out" in printed.err
    assert str(out / "heads.json") in printed.out
    assert json.loads((out / "heads.json").read_text())["measure"] == "lift"


def test_layers_that_the_model_lacks(
    run: Any, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data", str(data), "--map-layers", "2-9", status=1)
    assert "maps is '2-9', but the model has layers 0-3" in capsys.readouterr().err


def test_coco_with_its_annotations(run: Any, tmp_path: Path) -> None:
    folder = write_all(tmp_path / "whatsup")
    (folder / "annotations").mkdir()
    names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    boxes = [
        {"image_id": 139 + number, "category_id": kind, "bbox": [5 * kind, 4, 20, 22]}
        for number in range(3)
        for kind in (1, 2)
    ]
    content = {"images": [], "categories": names, "annotations": boxes}
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))
    words = ["--dataset", "coco_two", "--data", str(folder), "--split", "all", "--max-tokens", "4"]
    out = run(*words)
    given = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert given["measures"]["boxes"]["questions"] == 3
    assert given["steered"]["steering"]["preset"] == "coco_two"
    assert [a["objects"] for a in given["answers"]] == [["dog", "cat"]] * 3


BAD = {
    "boxes": ({"cat": [30, 5, 9, 9]}, "own.jsonl, row 2, question own-1: boxes.cat must have x0 <"),
    "place": ({"cat": [0, 0, 9, 900]}, "own-1: boxes.cat must lie in the picture"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_boxes_stop_it_before_an_engine_starts(
    case: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "make_llm", lambda *_, **__: pytest.fail("an engine was started"))
    boxes, sentence = BAD[case]
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[1]["boxes"] = boxes
    write(data, rows)
    assert cli.main(["diagnose", "--model", "tiny", "--data", str(data)]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--map-layers", "9-2"], "maps"),
        (["--max-map-bytes", "-3"], "max_map_bytes"),
        (["--by", "lift"], "--by lift needs boxes, and no question has any"),
        (["-o", "absent/out"], "must be a folder, new or not, in one that exists"),
        (["--limit", "0"], "--limit must be >= 1"),
        (["--split", "x"], "has no split 'x'"),
    ],
)
def test_bad_options_stop_it_before_an_engine_starts(
    options: list[str],
    sentence: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "make_llm", lambda *_, **__: pytest.fail("an engine was started"))
    monkeypatch.chdir(data.parent)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row.pop("boxes", None)
    write(data, rows)
    assert cli.main(["diagnose", "--model", "tiny", "--data", str(data), *options]) == 1
    assert sentence in capsys.readouterr().err
