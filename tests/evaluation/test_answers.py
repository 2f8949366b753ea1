"""Answers from files: rows and result files of the paper's code, calibrated and scored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.answer_cases import (
    COUNT,
    NAME,
    asked,
    results,
    rows,
    said,
    unsure,
    write_json,
    write_results,
    write_rows,
)
from support.benchmark_files import framed

from adaptvis_vllm import cli
from adaptvis_vllm.evaluation import breakdown
from adaptvis_vllm.evaluation.answer_files import read_answers
from adaptvis_vllm.evaluation.answered import benchmark_of, rows_of, table_of
from adaptvis_vllm.evaluation.calibration.ceiling import ceiling, oracle
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.steering.preset import read_preset

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def calibrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command; returns calibration.json, with what was printed as "printed"."""

    def call(*words: Any) -> dict[str, Any]:
        out = tmp_path / "calibrated"
        assert cli.main(["calibrate", "-o", str(out), *map(str, words)]) == 0
        content = json.loads((out / "calibration.json").read_text())
        page = unescape((out / "report.html").read_text())
        assert read_preset(out / "preset.json").mode == _chosen(content)["params"]["mode"]
        assert page.count("<svg") == len(list((out / "plots").iterdir()))
        return content | {"printed": capsys.readouterr().out, "page": page}

    return call


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command; returns its JSON, with what was printed as "printed"."""

    def call(*words: Any) -> dict[str, Any]:
        out = tmp_path / "eval.json"
        assert cli.main(["eval", "-o", str(out), *map(str, words)]) == 0
        assert "<svg" in out.with_suffix(".html").read_text()
        return json.loads(out.read_text()) | {"printed": capsys.readouterr().out}

    return call


def _chosen(content: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in content["candidates"] if c["family"] == content["chosen"])


# -- rows -------------------------------------------------------------------------------


def test_rows_are_calibrated(calibrate: Run, tmp_path: Path) -> None:
    """0.5 is right exactly below the threshold, 1 and 2 above it."""
    file = write_rows(tmp_path / "run.jsonl", rows())
    found = calibrate("--answers", file, "--model", "made-up")
    params = _chosen(found)["params"]
    assert (params["alpha_low"], params["alpha_high"]) == (0.5, 1.0)
    assert params["confidence"] == "max_prob"
    assert [found["alphas"], found["accuracy_by_alpha"]] == [[0.5, 1.0, 2.0], [0.5, 0.5, 0.5]]
    assert found["oracle"]["accuracy"]["value"] == 1
    assert found["oracle"]["reached"] == pytest.approx(_chosen(found)["gain"]["value"] / 0.5)
    assert found["tokens"] is None
    assert "tokens" not in found["printed"]
    answers = {part["name"]: part["accuracy"] for part in found["parts"]["answer"]}
    assert list(answers) == ["left", "on", "right", "under"]
    assert [answers["on"][f"alpha {a}"] for a in ("0.5", "1", "2")] == [1, 0, 0]
    assert answers["left"]["oracle"] == 1
    bins = found["parts"]["max_prob"]
    assert sum(part["questions"] for part in bins) == COUNT
    assert bins[0]["accuracy"]["alpha 0.5"] == 1
    assert bins[-1]["accuracy"]["alpha 0.5"] == 0
    for text in ("oracle", "By answer", "By max_prob", "reaches", "made-up", "run.jsonl"):
        assert text in found["page"]
    assert "only" not in " ".join(found["notes"])


def test_alphas_of_one_split_are_left_out(calibrate: Run, tmp_path: Path) -> None:
    mine = write_rows(tmp_path / "mine.jsonl", rows((0.25, 0.5, 1, 2)))
    test = write_rows(
        tmp_path / "test.jsonl", [r | {"id": f"t{r['id']}"} for r in rows((0.5, 1, 4))]
    )
    found = calibrate("--answers", mine, "--test-answers", test, "--dataset", "controlled_a")
    assert found["alphas"] == [0.5, 1.0]
    assert found["notes"][:2] == [
        "alpha 0.25, 2: left out, only mine.jsonl has it.",
        "alpha 4: left out, only test.jsonl has it.",
    ]
    assert all(f"note: {note}" in found["printed"] for note in found["notes"])
    transfer = {t["family"]: t["accuracy"]["value"] for t in found["transfer"]["test.jsonl"]}
    assert transfer == {"base": 0.5, "adaptive": 1.0}
    assert found["test_oracle"]["test.jsonl"]["reached"] == 1
    assert found["benchmark"] == "controlled_a"


def test_measures_may_be_missing(calibrate: Run, tmp_path: Path) -> None:
    none = [{k: v for k, v in row.items() if k != "confidence"} for row in rows()]
    found = calibrate("--answers", write_rows(tmp_path / "none.jsonl", none))
    assert found["chosen"] == "base"
    assert found["measures"] == {}
    assert "No confidence is known" in found["printed"]
    given = [
        r | {"confidence": {"margin": unsure(n), "max_prob": None}} for n, r in enumerate(rows())
    ]
    found = calibrate("--answers", write_rows(tmp_path / "margin.jsonl", given))
    assert list(found["measures"]) == ["margin"]
    assert _chosen(found)["params"]["confidence"] == "margin"
    number = [row | {"confidence": unsure(n)} for n, row in enumerate(rows())]
    found = calibrate("--answers", write_rows(tmp_path / "number.jsonl", number), "--alphas", "0.5")
    assert list(found["measures"]) == ["max_prob"]
    assert found["alphas"] == [0.5, 1.0]


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    """Alphas as a struct's fields, as a map, and with nulls where pandas fills them in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = read_answers([write_rows(tmp_path / "a.jsonl", rows())])
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "struct.parquet")
    maps = pa.Table.from_pylist(rows()).set_column(
        3,
        "answers",
        pa.array(
            [list(row["answers"].items()) for row in rows()], pa.map_(pa.string(), pa.string())
        ),
    )
    pq.write_table(maps, tmp_path / "map.parquet")
    write_json(tmp_path / "list.json", rows())
    for name in ("struct.parquet", "map.parquet", "list.json"):
        found = read_answers([tmp_path / name])
        assert found.questions == plain.questions
        assert found.texts == plain.texts
        assert np.array_equal(found.confidences["max_prob"], plain.confidences["max_prob"])


def test_saved_rows_read_the_same(tmp_path: Path) -> None:
    """Layers and span, meta, several right answers and prompts too; floats to the last bit."""
    given = [
        row
        | {"answer": [row["answer"], "thing"], "layers": "0-3,7", "span": "interval"}
        | {"prompt": framed(row["question"]), "familiar": n % 2 == 0, "choices": ["left", "on"]}
        | {"confidence": {"entropy": float(np.float32(1 / 3 + n / 99))}}
        for n, row in enumerate(rows())
    ]
    first = read_answers([write_rows(tmp_path / "a.jsonl", given)])
    benchmark = benchmark_of(first, None, None)
    table = table_of(benchmark, first)
    assert (table.layers, table.span) == ("0-3,7", "interval")
    again = read_answers([write_rows(tmp_path / "b.jsonl", rows_of(benchmark.questions, table))])
    assert again.questions == first.questions
    assert (again.texts, again.layers, again.span) == (first.texts, first.layers, first.span)
    assert np.array_equal(again.confidences["entropy"], first.confidences["entropy"])
    assert benchmark.groups == ("answer", "familiar")


def test_null_is_absent_and_marks_are_dropped(tmp_path: Path) -> None:
    """In every form of file; of Parquet the fields that only other rows' structs have too."""
    plain = rows()[:3]
    nulls: list[dict[str, Any]] = [row | {"layers": None, "extra": None} for row in plain]
    expected = read_answers([write_rows(tmp_path / "plain.jsonl", plain)])
    write_rows(tmp_path / "a.jsonl", nulls)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(nulls).encode())
    for name in ("a.jsonl", "a.json"):
        found = read_answers([tmp_path / name])
        assert found.questions == expected.questions
        assert found.texts == expected.texts


# -- result files of the paper's code ---------------------------------------------------


def test_one_file_a_weight(calibrate: Run, tmp_path: Path) -> None:
    """Joined by position; data set and split from the names, the confidence from whoever has it."""
    files = write_results(tmp_path)
    found = calibrate("--answers", *files.values())
    assert (found["benchmark"], found["split"]) == ("controlled_a", "test")
    assert found["alphas"] == [0.5, 1.0, 2.0]
    assert _chosen(found)["params"]["alpha_low"] == 0.5
    assert any("no single alpha" in note for note in found["notes"])
    answers = read_answers(list(files.values()))
    assert answers.texts[0.5] == tuple(said(n, 0.5) for n in range(COUNT))
    assert answers.questions[3].answers == (asked(3)[1],)
    assert answers.confidences["max_prob"].tolist() == pytest.approx(
        [unsure(n) for n in range(COUNT)]
    )


def test_alphas_in_one_file(tmp_path: Path) -> None:
    """Generation as a mapping, Golden as a list, an empty generation, null beside a number."""
    content = [
        row
        | {"Generation": {"1.0": "", "0.5": row["Generation"]}, "Golden": [row["Golden"], "on"]}
        | {"uncertainty": None, "uncertainty_prob": 0.25}
        for row in results(0.5)
    ]
    path = write_json(tmp_path / NAME.format("adapt_vis_research_1.0_1.0", "False"), content)
    found = read_answers([path])
    assert (found.dataset, found.split) == ("controlled_a", "validation")
    assert found.texts[1.0] == ("",) * COUNT
    assert found.questions[0].answers == ("Left", "on")
    assert set(found.confidences["max_prob"].tolist()) == {0.25}
    benchmark = benchmark_of(found, None, None)
    assert table_of(benchmark, found).scores[:, 1].sum() == 0
    assert benchmark.questions[0].choices == ("left", "right", "on", "under")


def test_confidences_that_are_none_of_unsteered_answers(tmp_path: Path) -> None:
    """That of scaled answers, and raw scores, which that code writes too, are left out."""
    steered = write_json(
        tmp_path / NAME.format("scaling_vis_0.5", "True"), results(0.5, "uncertainty")
    )
    found = read_answers([steered])
    assert found.confidences == {}
    assert found.notes == (
        f"The uncertainty in {steered.name} is that of answers under alpha 0.5; it is left out.",
    )
    raw = [row | {"Uncertainty": 17.25} for row in results(1.0)]
    file = write_json(tmp_path / NAME.format("base_1.0", "True"), raw)
    assert read_answers([file]).notes == (
        f"The uncertainty in {file.name} is no probability (17.25); it is left out.",
    )
    plain = write_json(tmp_path / "results_VSR_scaling_vis_1.0.json", results(1.0, "Uncertainty"))
    found = read_answers([plain])
    assert (found.dataset, found.split, found.notes) == ("vsr", "", ())
    assert list(found.confidences) == ["max_prob"]


def _changed(number: int, field: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(content: list[dict[str, Any]]) -> None:
        if value is ...:
            del content[number][field]
        else:
            content[number][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed(2, "Golden", ...), "row 3: Golden is missing"),
        (_changed(2, "Golden", None), "row 3: Golden must be a text or a list of texts, not None"),
        (_changed(2, "Golden", []), "row 3: Golden must be a text or a list of texts, not []"),
        (_changed(0, "Golden", " "), "row 1: Golden must be a text or a list"),
        (_changed(4, "Generation", None), "row 5: Generation must be a text, or map alphas"),
        (_changed(4, "Generation", {"x": "On"}), "row 5: answers must map alphas to texts: 'x' is"),
        (_changed(4, "Generation", {"0.5": "On"}), "row 5: it has answers under alpha 0.5, unlike"),
        (_changed(1, "uncertainty", float("nan")), "row 2: uncertainty must be a finite number"),
        (_changed(1, "uncertainty", "high"), "row 2: uncertainty must be a number, not 'high'"),
        (_changed(1, "uncertainty", ...), "row 2: it lacks confidence max_prob, unlike row 1"),
        (_changed(7, "Prompt", 7), "row 8: Prompt must be a text, not 7"),
        (lambda c: c.insert(3, ["On"]), "row 4: it must be an object, not list"),
        (lambda c: c.clear(), "holds no answers"),
    ],
)
def test_awkward_results_are_refused_in_a_sentence(
    change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = results(1.0, "uncertainty")
    change(content)
    path = write_json(tmp_path / NAME.format("base_1.0", "True"), content)
    _refused(["calibrate", "--answers", path, *_low(tmp_path)], message, tmp_path, capsys)


def _low(folder: Path) -> list[Path]:
    return [write_json(folder / NAME.format("scaling_vis_0.5", "True"), results(0.5))]


def _refused(words: list[Any], message: str, folder: Path, capsys: Any) -> None:
    assert cli.main([*map(str, words), "-o", str(folder / "out.json")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"adaptvis {words[0]}: ")
    assert error.count("\n") == 1, error
    assert not (folder / "out.json").exists()


def test_files_that_do_not_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*files: Path, message: str, test: Path | None = None) -> None:
        more = [] if test is None else ["--test-answers", test]
        words = ["calibrate", "--answers", *files, *more]
        _refused(words, message, tmp_path, capsys)

    files = write_results(tmp_path)
    base = files["base"]
    other = tmp_path / NAME.format("scaling_vis_0.8", "True")
    write_json(other, results(0.5)[:-1])
    refused(base, other, message=f"holds {COUNT} questions and {other.name} {COUNT - 1}; they must")
    content = results(0.5)
    content[5]["Prompt"] = framed("Where is the hat in relation to the table?")
    write_json(other, content)
    refused(base, other, message="have different questions in row 6: 'Where is the beer")
    content = results(0.5)
    content[6]["Golden"] = "Left"
    write_json(other, content)
    refused(base, other, message="have different right answers in row 7: 'On' and 'Left'")
    content = results(0.5)
    content[2]["Generation"] = "no idea"
    again = tmp_path / "again"
    again.mkdir()
    again = write_json(again / files["low"].name, content)
    message = "has other answers under alpha 0.5 than the files before it, first in row 3"
    refused(base, files["low"], again, message=message)
    validation = write_results(tmp_path, test=False)
    refused(base, validation["low"], message="has the split test, but")
    refused(base, files["low"], message="is about the questions of --answers", test=base)
    vsr = write_json(tmp_path / "results_VSR_scaling_vis_0.5.json", results(0.5))
    refused(base, vsr, message="has the dataset controlled_a, but results_VSR")
    refused(files["adaptive"], message="holds no answers under alpha 1, the unsteered ones")
    refused(files["low"], message="its alphas are 0.5")
    refused(base, message="alphas must hold another value than 1")
    scores = write_json(tmp_path / "results1.5_scores.json", {"acc": 0.5, "correct_id": [1]})
    refused(scores, message="must hold a list of answers, not an object with acc, correct_id")
    refused(tmp_path / "none.jsonl", message="no such file")
    refused(tmp_path, message="no such file")
    (tmp_path / "a.csv").write_text("x")
    refused(tmp_path / "a.csv", message="must end in .jsonl, .parquet, .json")
    (tmp_path / "a.json").write_text("[{]")
    refused(tmp_path / "a.json", message="a.json is not JSON: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "row 2: answer must be a text or a list of texts, not None"),
        ({"question": None}, "row 2: question (or prompt) is missing"),
        ({"question": 5}, "row 2: question must be a text, not 5"),
        ({"id": "q0"}, "row 2: the id 'q0' occurs twice"),
        ({"id": "\ud83d"}, "row 2: line 2: id is no Unicode text"),
        ({"choices": "left"}, "row 2: choices must be a list of texts, not 'left'"),
        ({"answers": "Left"}, "row 2: answers must map alphas to texts, not 'Left'"),
        ({"answers": {"1": "a", "1.0": "b"}}, "row 2: answers hold alpha 1 twice"),
        ({"answers": {"1": "a"}}, "row 2: it lacks answers under alpha"),
        ({"answers": {"0": "a"}}, "row 2: answers must map alphas to texts: '0' is no alpha"),
        ({"answers": {"0.5": "a", "1": None}}, "row 2: the answer under alpha 1 must be a text"),
        (
            {"confidence": {"max_prob": 1.5}},
            "confidence max_prob must be a number from 0 to 1, not",
        ),
        (
            {"confidence": {"maxprob": 0.5}},
            "must be of max_prob, margin, entropy, not 'maxprob'; did",
        ),
        ({"confidence": {"margin": 0.5}}, "confidence"),
        ({"confidence": True}, "confidence max_prob must be a number from 0 to 1, not True"),
        ({"layers": "x"}, "row 2: layers must be layer numbers"),
        ({"layers": "0-3"}, "row 2: it has steering layers, unlike row 1"),
    ],
)
def test_bad_rows_are_refused_in_a_sentence(
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = rows()
    content[1] |= change
    file = write_rows(tmp_path / "run.jsonl", content)
    _refused(["calibrate", "--answers", file], message, tmp_path, capsys)
    _refused(["eval", "--answers", f"x={file}"], message, tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "--answers brings its own questions and answers; --split does not"),
        (["--max-tokens", "5"], "--max-tokens does not go with it"),
        (["--test", "none"], "--test does not go with it"),
        (["--dataset", "controled_a"], "did you mean controlled_a"),
        (["--dataset", "vg_two"], "--dataset"),
        (["--alphas", "0.5,0.8"], "has no alpha 0.8; it has 0.5, 1, 2"),
        (["--layers", "x"], "--layers must be layer numbers"),
        (["--layers", "2"], "--layers 2: the answers of run.jsonl have 0-3"),
        (["--scorer", "judge"], "--scorer must be one of"),
        (["--save-answers", "a.csv"], "--save-answers: a.csv must end in .jsonl"),
        (["--save-answers", "no/a.jsonl"], "--save-answers: no such folder no"),
        (["--test-answers", "SAME"], "holds the question q0, which run.jsonl holds too"),
        (["--test-answers", "SAME", "--save-answers", "SAME"], "is the input"),
    ],
)
def test_bad_options_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [row | {"layers": "0-3"} for row in rows()]
    if "vg_two" in words:
        message = "is about controlled_a, not vg_two"
        file = write_json(
            tmp_path / NAME.format("research_1.0", "True"),
            [row | {"Generation": {"1": "On", "2": "On"}} for row in results(1.0)],
        )
    else:
        file = write_rows(tmp_path / "run.jsonl", held)
    same = str(write_rows(tmp_path / "same.jsonl", held[:1]))
    words = [same if word == "SAME" else word for word in words]
    _refused(["calibrate", "--answers", file, *words], message, tmp_path, capsys)


# -- eval -------------------------------------------------------------------------------


def test_eval_of_a_sweep(evaluate: Run, tmp_path: Path) -> None:
    """Steering as elsewhere; pairs and sets from the questions' words; the oracle."""
    file = write_rows(tmp_path / "run.jsonl", rows())
    words = ["--answers", f"mine={file}", "--dataset", "controlled_a", "--alpha", "2"]
    found = evaluate(*words, "--alpha-low", "0.5", "--alpha-high", "2", "--threshold", "0.5")
    methods = found["methods"]
    assert list(methods) == ["base", "scaling", "adaptive", "oracle"]
    assert [m["accuracy"]["value"] for m in methods.values()] == [0.5, 0.5, 1, 1]
    assert methods["adaptive"]["mended"] == COUNT // 2
    assert methods["adaptive"]["over"] == "base"
    # Left and right are right in every set, on and under in none.
    assert methods["base"]["figures"] == {"pair": 0.5, "set": 0.0}
    assert methods["adaptive"]["figures"] == {"pair": 1.0, "set": 1.0}
    assert methods["adaptive"]["steered"] == {"alpha 0.5": COUNT // 2, "alpha 2": COUNT // 2}
    assert [p["value"] for p in found["published"][:3]] == [60.3, 64.5, 84.9]
    assert found["chance"] == 0.25
    assert set(found["parts"]) == {"max_prob"}  # by answer is by relation
    assert found["answers"][2]["adaptive"]["confidence"] == pytest.approx(unsure(2))


def test_eval_leaves_published_settings_out_that_it_cannot_tell(
    evaluate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "run.jsonl", rows())
    words = ["--answers", f"mine={file}", "--dataset", "controlled_a"]
    found = evaluate(*words)
    assert list(found["methods"]) == ["base", "oracle"]
    assert "note: ScalingVis of mine is left out: alpha 0.8 was not swept" in found["printed"]
    assert "alpha 1.5 was not swept" in found["notes"][1]
    _refused(["eval", *words, "--alpha", "4"], "alpha 4.0 was not swept", tmp_path, capsys)
    words += ["--alpha-low", "0.5", "--alpha-high", "2", "--threshold", "0.5"]
    message = "AdaptVis of mine: confidence margin is not known; known is max_prob"
    _refused(["eval", *words, "--confidence", "margin"], message, tmp_path, capsys)


def test_eval_of_result_files(evaluate: Run, tmp_path: Path) -> None:
    """A file a method; its published figures beside it, whatever it is called."""
    files = write_results(tmp_path)
    named = [f"{name}={files[name]}" for name in ("adaptive", "low", "base", "high")]
    found = evaluate("--answers", *named)
    assert (found["benchmark"], found["split"]) == ("controlled_a", "test")
    methods = found["methods"]
    assert list(methods) == ["adaptive", "low", "base", "high"]
    assert methods["base"]["gain"] is None
    assert methods["adaptive"]["gain"]["value"] == 0.5
    assert methods["low"]["steering"]["alpha"] == 0.5
    assert methods["adaptive"]["steering"] is None
    assert methods["adaptive"]["steered"] == {"not known": COUNT}
    assert methods["adaptive"]["figures"] == {"pair": 1.0, "set": 1.0}
    lines = {line.split()[0]: line for line in found["printed"].splitlines()[2:6]}
    assert lines["adaptive"].endswith("84.9       98.2")
    assert lines["base"].endswith("60.3       48.2")
    # Two models: each over its own unsteered answers; joined files make a sweep.
    sweep = [f"a={files[name]}" for name in ("base", "low")]
    found = evaluate("--answers", *sweep, f"b={files['base']}", "--alpha", "0.5")
    assert list(found["methods"]) == ["a base", "a scaling", "a oracle", "b"]
    assert found["methods"]["a oracle"]["over"] == "a base"
    assert found["methods"]["b"]["gain"] is None


def test_eval_of_files_that_do_not_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_results(tmp_path)
    short = write_json(tmp_path / "short.json", results(0.5)[:3])
    words = ["eval", "--answers", f"a={files['base']}"]
    _refused([*words, f"b={short}"], "3; they must be about the same", tmp_path, capsys)
    _refused([*words, files["low"]], "--answers takes NAME=FILE, not", tmp_path, capsys)
    content = [row | {"Prompt": framed("Where is it?")} for row in results(1.0)]
    lost = write_json(tmp_path / "lost.json", content)
    words_lost = ["eval", "--answers", f"a={lost}", "--dataset", "controlled_a"]
    _refused(words_lost, "question 1 is none of controlled_a: 'Where is it?'", tmp_path, capsys)
    _refused([*words, "--data", "x"], "--data does not go with it", tmp_path, capsys)


def test_no_engine_is_loaded(tmp_path: Path) -> None:
    """Neither vLLM nor torch: both commands run where there is neither."""
    file = write_rows(tmp_path / "run.jsonl", rows())
    program = (
        "import sys; sys.modules['vllm'] = sys.modules['torch'] = None\n"
        "from adaptvis_vllm.evaluation import command\n"
        "from adaptvis_vllm.evaluation.calibration import command as calibrate\n"
        f"assert command.main(['--answers', 'a={file}', '-o', 'a.json'], '') == 0\n"
        f"assert calibrate.main(['--answers', '{file}', '-o', 'out'], '') == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Recommended: alpha = 0.5 where max_prob <" in done.stdout


# -- the oracle and the parts, by hand --------------------------------------------------


def test_ceiling_and_parts_by_hand(tmp_path: Path) -> None:
    given = rows((0.5, 1), 4)
    for row, low, plain in zip(given, "LRUO", "LROU", strict=True):
        names = {"L": "left", "R": "right", "O": "on", "U": "under"}
        row["answers"] = {"0.5": names[low], "1": names[plain]}
    found = read_answers([write_rows(tmp_path / "a.jsonl", given)])
    table = table_of(benchmark_of(found, None, None), found)
    # Left and right under both; on and under only with 0.5 swapped: under 1 on and under.
    assert table.scores.tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]
    assert oracle(table).tolist() == [1, 1, 1, 1]
    best = ceiling(table, table.scores[:, 0])
    assert (best.accuracy.value, best.gain.value, best.reached) == (1, 0, None)
    table.scores[3, 1] = 0
    table.scores[2] = [1, 0]
    best = ceiling(table, np.array([1, 1, 1, 0.0]))
    assert (best.accuracy.value, best.gain.value, best.reached) == (0.75, 0.25, 1)
    columns = {"low": np.array([1, 0, 1, 1, 0, 0, 1.0])}
    questions = [Question(str(n), (), "?", a) for n, a in enumerate("abABaaa")]
    parts = breakdown.by_answer(questions, columns)
    assert [(p.name, len(p.rows), p.accuracy["low"]) for p in parts] == [
        ("a", 5, pytest.approx(0.6)),
        ("b", 2, 0.5),
    ]
    confidence = np.array([0.1, 0.2, 0.2, 0.9, np.nan, 0.5, 0.9])
    parts = breakdown.by_confidence(confidence, columns)
    assert sorted(i for p in parts for i in p.rows.tolist()) == [0, 1, 2, 3, 5, 6]
    assert parts[0].name == "0.100 to 0.200"  # equals stay together
    assert parts[-1].rows.tolist() == [3, 6]
    crowded = np.array([0.1] * 8 + [0.2, 0.3])
    parts = breakdown.by_confidence(crowded, {"all": np.ones(10)})
    assert [part.rows.tolist() for part in parts] == [list(range(8)), [8, 9]]
    assert breakdown.by_confidence(np.full(7, 0.5), columns) == []
    assert breakdown.by_answer(questions[:1], columns) == []
