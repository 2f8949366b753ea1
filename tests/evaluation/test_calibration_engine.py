"""The sweep on real engines: its table is what the settings do, and what it costs."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from support.browser import all_plots_visible, measure, needs_chromium, screenshot
from support.calibration_cases import questions, write_questions

from adaptvis_vllm import AdaptVis, Off, ScalingVis, cli
from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.calibration import command
from adaptvis_vllm.evaluation.calibration.grid import GAP, thresholds
from adaptvis_vllm.evaluation.calibration.sweep import Sweep, sweep
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.datasets.scoring import contains
from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.preset import read_preset

GRID = (0.3, 0.5, 1.0, 2.0, 3.0)
TOKENS = 6
ARTEFACTS = Path(__file__).parents[2] / "out/tests"


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions(20)


@pytest.fixture(scope="module")
def swept(engine: Any, asked: list[Question]) -> Sweep:
    assert engine.reset_prefix_cache()
    return sweep(engine, asked, contains, GRID, max_tokens=TOKENS)


@pytest.mark.parametrize("kind", CONFIDENCES)
def test_table_equals_running_the_setting(
    engine: Any, asked: list[Question], swept: Sweep, kind: str
) -> None:
    """Answer by answer, under thresholds that divide the questions at several places."""
    table = swept.table
    at = thresholds(table.confidences[kind])
    settings = [
        AdaptVis(low, high, float(at[int(share * (len(at) - 1))]), confidence=kind)
        for low, high, share in ((0.3, 3.0, 0.5), (3.0, 0.5, 0.2), (1.0, 2.0, 0.8), (2.0, 0.3, 0))
    ]
    settings += [AdaptVis(0.3, 3.0, t, confidence=kind) for t in (0.0, 1.0)]
    assert engine.reset_prefix_cache()
    rows = answer(engine, asked, settings, max_tokens=TOKENS)
    changed = 0
    for column, params in enumerate(settings):
        chosen = table.chosen(params)
        for number, row in enumerate(rows):
            found = row[column]
            assert found.text == table.texts[number][chosen[number]]
            assert found.report["alpha"] == table.alphas[chosen[number]]
            near = table.confidences[kind][number]
            assert found.report["confidence"] == pytest.approx(near, abs=GAP / 5)
            changed += found.text != table.texts[number][table.plain]
        assert [contains(q, r[column].text) for q, r in zip(asked, rows, strict=True)] == (
            table.scores_of(params) == 1
        ).tolist()
    assert changed > 20  # the settings do change answers


def test_single_alphas_and_the_base_equal_running_them(
    engine: Any, asked: list[Question], swept: Sweep
) -> None:
    """Those that carried a confidence included; in another order, on a warm cache."""
    table = swept.table
    settings = [Off() if alpha == 1 else ScalingVis(alpha) for alpha in GRID[::-1]]
    rows = answer(engine, asked[::-1], settings, max_tokens=TOKENS)
    texts = [[one.text for one in row[::-1]] for row in rows[::-1]]
    assert texts == [list(row) for row in table.texts]


def test_confidences_agree_with_log_probabilities(
    engine: Any, asked: list[Question], swept: Sweep
) -> None:
    """Of the unsteered answers, as vLLM itself reports them."""
    import math

    rows = answer(engine, asked, [Off()], max_tokens=1, logprobs=2)
    for number, (found,) in enumerate(rows):
        assert found.logprobs is not None
        first, second = (math.exp(logprob) for _, logprob in found.logprobs[0][:2])
        confidence = {kind: swept.table.confidences[kind][number] for kind in CONFIDENCES}
        assert confidence["max_prob"] == pytest.approx(first, abs=1e-5)
        assert confidence["margin"] == pytest.approx(first - second, abs=1e-5)
        assert 0 < confidence["entropy"] < 1


def test_text_only_questions_are_refused(engine: Any) -> None:
    lost = Question(id="q7", images=(), question="Where?", answer="here")
    with pytest.raises(ValueError, match="question q7 is not steered: no image"):
        sweep(engine, [lost], contains, GRID, max_tokens=1)


def test_short_grids_find_every_confidence(
    engine: Any, asked: list[Question], swept: Sweep
) -> None:
    short = sweep(engine, asked[:4], contains, (2.0,), max_tokens=TOKENS).table
    assert short.alphas.tolist() == [1.0, 2.0]
    for kind in CONFIDENCES:
        assert short.confidences[kind] == pytest.approx(swept.table.confidences[kind][:4], abs=1e-6)


# -- the command ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The command's folder, on the module's engine, and what it printed."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_questions(folder / "data", "validation", 16)
    write_questions(folder / "data", "plain", 6, first=16)
    words = ["--data", str(folder / "data"), "--model", "tiny", "-o", str(folder / "out")]
    words += ["--alphas", "0.3,0.5,2,3", "--max-tokens", "3"]
    words += ["--save-answers", str(folder / "answers.jsonl"), "--layers", "0-1"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(command, "make_llm", lambda args, **overrides: engine)
        assert cli.main(["calibrate", *words]) == 0
    return folder / "out", printed.getvalue()


def test_bad_rows_are_left_out(engine: Any, tmp_path: Path) -> None:
    """Of every split that is asked, with their reasons; the others' answers stay the same."""
    contents = []
    for kind, code in (("clean", 0), ("mixed", 3)):
        data = tmp_path / kind
        write_questions(data, "validation", 6)
        write_questions(data, "plain", 3, first=16)
        if kind == "mixed":
            for split in ("validation", "plain"):
                path = data / f"{split}.jsonl"
                long = json.loads(path.read_text().splitlines()[0])
                long |= {"id": "long", "question": "far " * 2000}
                lost = long | {"id": "lost", "image": "absent.png"}
                path.write_text(
                    "{\n" + path.read_text() + f"{json.dumps(long)}\n{json.dumps(lost)}"
                )
        words = ["--data", str(data), "--model", "tiny", "-o", str(tmp_path / f"out-{kind}")]
        words += ["--alphas", "0.3,3", "--max-tokens", "3"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "make_llm", lambda args, **overrides: engine)
            assert cli.main(["calibrate", *words]) == code
        contents.append(json.loads((tmp_path / f"out-{kind}/calibration.json").read_bytes()))
    clean, mixed = contents
    for name in ("answers", "transfer", "questions"):
        assert mixed[name] == clean[name]
    told = [error["error"] for error in mixed["errors"]]
    assert len(told) == 6
    for reason in ("line 1 is not JSON", "maximum context length is 512", "no such file"):
        assert sum(reason in one for one in told) == 2


def test_command(calibrated: tuple[Path, str]) -> None:
    out, printed = calibrated
    assert "validation: 16 questions" in printed
    assert "plain, which took no part" in printed
    assert "warning: 16 questions are few" in printed
    content = json.loads((out / "calibration.json").read_text())
    assert content["alphas"] == [0.3, 0.5, 1.0, 2.0, 3.0]
    assert content["tokens"]["all"] > content["tokens"]["plain"] > 0
    assert content["transfer"]["plain"][0]["family"] == "base"
    params = read_preset(out / "preset.json")
    chosen = next(c for c in content["candidates"] if c["family"] == content["chosen"])
    assert chosen["params"] == vars(params)
    names = {path.stem for path in (out / "plots").iterdir()}
    assert {"alpha", "confidence", "reliability", "risk_coverage"} <= names


def test_saved_answers_give_the_same_calibration(
    calibrated: tuple[Path, str], tmp_path: Path
) -> None:
    """Figure by figure, and the same preset, layers included."""
    out, _ = calibrated
    answers = out.parent / "answers.jsonl"
    assert cli.main(["calibrate", "--answers", str(answers), "-o", str(tmp_path / "again")]) == 0
    first, again = (
        json.loads((folder / "calibration.json").read_text())
        for folder in (out, tmp_path / "again")
    )
    assert read_preset(tmp_path / "again/preset.json") == read_preset(out / "preset.json")
    # What only an engine knows, and where the answers come from.
    for name in ("benchmark", "split", "facts", "tokens", "transfer", "notes"):
        assert first.pop(name) != again.pop(name) or name == "notes"
    assert first == again
    steered = [c["params"] for c in again["candidates"] if c["params"]["mode"] != "off"]
    assert {params["layers"] for params in steered} == {"0-1"}


@needs_chromium
def test_page_shows_every_plot(calibrated: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = calibrated
    plots = len(list((out / "plots").iterdir()))
    all_plots_visible(measure(out / "report.html", tmp_path), least=plots)
    screenshot(out / "report.html", ARTEFACTS / "calibration.png", tmp_path)
