"""Another's run of the paper's code on LLaVA-1.5-7B: what this project's code makes of it.

Its rows are others' and not part of this repository; they are read where they lie.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adaptvis_vllm import cli
from adaptvis_vllm.evaluation.answer_files import read_answers
from adaptvis_vllm.evaluation.datasets.question_files import read_questions
from adaptvis_vllm.evaluation.datasets.splits import validation_and_test
from adaptvis_vllm.steering.preset import read_preset

DATA = Path(__file__).parents[3] / "shared/data"
RUNS = DATA / "real_runs"
QUESTIONS = DATA / "whatsup_prompts/Controlled_Images_A_with_answer_four_options.jsonl"
VALIDATION, TEST = (RUNS / f"controlled_a.{name}.jsonl" for name in ("validation", "test"))

pytestmark = pytest.mark.skipif(
    not TEST.is_file(), reason=f"others' answers of LLaVA-1.5-7B are not at {RUNS}"
)


def calibrated(folder: Path, *words: Any) -> dict[str, Any]:
    assert cli.main(["calibrate", "-o", str(folder / "out"), *map(str, words)]) == 0
    return json.loads((folder / "out/calibration.json").read_text())


def points(value: dict[str, float]) -> list[float]:
    return [round(100 * value[name], 1) for name in ("value", "low", "high")]


def test_base_and_adaptvis_have_the_papers_accuracies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper has 60.3 and, with 0.5 / 1.5, 84.9."""
    out = tmp_path / "eval.json"
    words = ["eval", "--answers", f"llava={TEST}", "--dataset", "controlled_a", "-o", str(out)]
    words += ["--alpha-low", "0.5", "--alpha-high", "1.2", "--threshold", "0.4"]
    assert cli.main(words) == 0
    print(capsys.readouterr().out)
    found = json.loads(out.read_text())["methods"]
    assert points(found["base"]["accuracy"])[0] == 60.3
    assert points(found["adaptive"]["accuracy"])[0] == 84.5
    assert points(found["adaptive"]["gain"]) == [24.2, 18.8, 29.7]
    assert points(found["oracle"]["accuracy"])[0] == 93.9


def test_calibrated_on_the_test_questions(tmp_path: Path) -> None:
    found = calibrated(tmp_path, "--answers", TEST)
    (chosen,) = [c for c in found["candidates"] if c["family"] == found["chosen"]]
    assert points(chosen["gain"]) == [24.5, 18.8, 30.2]
    assert 100 * found["oracle"]["reached"] == pytest.approx(73, abs=0.5)
    params = read_preset(tmp_path / "out/preset.json")
    assert (params.alpha_low, params.alpha_high, params.confidence) == (0.5, 1.0, "max_prob")
    assert params.threshold == pytest.approx(0.42, abs=0.005)


def test_calibrated_on_the_82(tmp_path: Path) -> None:
    """A gain, also on the questions that took no part; they are few, and it says so."""
    words = ["--answers", VALIDATION, "--test-answers", TEST, "--dataset", "controlled_a"]
    found = calibrated(tmp_path, *words)
    (chosen,) = [c for c in found["candidates"] if c["family"] == found["chosen"]]
    assert chosen["family"] == "adaptive"
    assert chosen["gain"]["low"] > 0
    assert any(w.startswith("82 questions are few") for w in found["warnings"])
    assert found["alphas"] == [0.5, 1.0, 1.2]
    assert (
        "alpha 0.8, 1.5, 2: left out, only controlled_a.validation.jsonl has it." in found["notes"]
    )
    (transferred,) = [t for t in found["transfer"][TEST.name] if t["family"] == "adaptive"]
    assert points(transferred["gain"]) == [26.1, 20.0, 32.1]


@pytest.mark.skipif(not QUESTIONS.is_file(), reason=f"the paper's questions are not at {QUESTIONS}")
def test_the_split_is_that_runs() -> None:
    asked = read_questions(QUESTIONS)
    for name, rows in validation_and_test(len(asked)).items():
        held = read_answers([RUNS / f"controlled_a.{name}.jsonl"]).questions
        drawn = [(asked[row].question, asked[row].answer) for row in rows]
        assert [(question.question, question.answers) for question in held] == drawn
