"""`adaptvis eval` on a real engine: every format end to end, its files, its page, its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.benchmark_files import (
    hub_cache,
    write_all,
    write_hub,
    write_own,
    write_parquet,
    write_vsr,
)
from support.browser import all_plots_visible, measure, needs_chromium, screenshot
from support.engine import generate, sampling

from adaptvis_vllm import AdaptVis, Off, ScalingVis, cli
from adaptvis_vllm.evaluation import command
from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.datasets import benchmarks
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.html.page import Figure, Section, Table, render
from adaptvis_vllm.evaluation.report import page
from adaptvis_vllm.evaluation.results import Evaluation, as_json, judge, summary_table

ARTEFACTS = Path(__file__).parents[2] / "out/tests"
TOKENS = 8
STEER = ["--alpha", "3", "--alpha-low", "0.3", "--alpha-high", "3", "--threshold", "0.4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every format: What'sUp, VSR and own questions in one folder, hub copies in another."""
    folder = write_all(tmp_path_factory.mktemp("eval") / "data")
    write_vsr(folder)
    (folder / "mine").mkdir()
    write_own(folder / "mine")
    write_parquet(folder / "mine.parquet")
    write_hub(folder.parent / "hub", folder)
    with hub_cache(folder.parent / "cache"):
        yield folder


@pytest.fixture
def run(engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command on the module's engine; returns what it wrote."""
    monkeypatch.setattr(command, "make_llm", lambda args: engine)

    def call(*options: str) -> dict[str, Any]:
        out = tmp_path / "result.json"
        words = ["eval", "--model", "tiny", "--max-tokens", str(TOKENS), "-o", str(out), *options]
        assert cli.main(words) == 0
        assert "<svg" in out.with_suffix(".html").read_text(encoding="utf-8")
        return json.loads(out.read_text(encoding="utf-8"))

    return call


WHATSUP = {
    "controlled_a": 8,
    "controlled_b": 8,
    "coco_one": 2,
    "coco_two": 3,
    "vg_one": 2,
    "vg_two": 3,
}


def test_whatsup_in_both_formats(data: Path, engine: Any) -> None:
    """Every part from its folder and from the hub's copy, in one batch of the engine."""
    hub = data.parent / "hub"
    where = {"questions": f"hf:{hub / 'questions'}"}
    loaded = [benchmarks.load(name, str(data)) for name in WHATSUP]
    loaded += [benchmarks.load(name, f"hf:{hub / 'whatsup'}", **where) for name in WHATSUP]
    asked = [q for b in loaded for q in b.questions]
    methods = {"base": Off(), "scaling": ScalingVis(3.0), "adaptive": AdaptVis(0.3, 3.0, 0.4)}
    answers = iter(answer(engine, asked, list(methods.values()), max_tokens=TOKENS))
    for benchmark in loaded:
        own = [next(answers) for _ in benchmark.questions]
        assert len(own) == WHATSUP[benchmark.name]
        outcomes = judge(benchmark, benchmark.questions, methods, own)
        found = Evaluation(benchmark, "all", benchmark.questions, outcomes, {})
        table = summary_table(found)
        assert [row[0] for row in table.rows] == ["base", "ScalingVis", "AdaptVis"]
        assert list(table.columns[-2:]) == ["LLaVA-1.5", "LLaVA-1.6"]
        assert ("pair" in table.columns) is benchmark.name.startswith("controlled")
        for row in json.loads(json.dumps(as_json(found)))["answers"]:
            gold = row["answer"][0].lower()
            for method in methods:
                text = row[method]["text"].lower()
                right = gold in text and not (gold == "on" and "front" in text)
                assert row[method]["right"] is right
    first = loaded[0].questions[0]  # the published raw prompt is what the engine got
    item = {
        "prompt": first.prompt,
        "multi_modal_data": {"image": Image.open(first.images[0]).convert("RGB")},
    }
    (plain,) = generate(engine, [item], sampling(max_tokens=TOKENS))
    (same,) = answer(engine, [first], [None], max_tokens=TOKENS)
    assert same[0].text == plain.outputs[0].text


def test_whatsup_by_the_command(run: Any, data: Path) -> None:
    """The published preset and the test split unless told otherwise."""
    hub = data.parent / "hub"
    options = ["--data", f"hf:{hub / 'whatsup'}", "--questions", str(data / "prompts")]
    found = run("--dataset", "controlled_b", *options)
    assert (found["benchmark"], found["split"], found["questions"]) == ("controlled_b", "test", 7)
    assert found["methods"]["scaling"]["steering"]["alpha"] == 0.8
    assert found["methods"]["adaptive"]["steering"]["preset"] == "controlled_b"
    assert set(found["methods"]["base"]["figures"]) == {"pair", "set"}
    assert [p["method"] for p in found["published"]] == ["base", "scaling", "adaptive"] * 2


def test_vsr(run: Any, data: Path) -> None:
    found = run("--dataset", "vsr", "--data", str(data))
    assert found["questions"] == 5
    assert list(found["methods"]) == ["base", "scaling"]
    assert list(found["methods"]["base"]["figures"]) == ["precision", "recall", "f1"]
    assert {p["figure"] for p in found["published"]} == {"accuracy", "f1"}
    assert [row["answer"][0] for row in found["answers"]] == ["No", "Yes", "No", "Yes", "No"]


def test_own(run: Any, data: Path) -> None:
    found = run("--data", str(data / "mine/own.jsonl"), *STEER, "--limit", "3")
    assert [row["id"] for row in found["answers"]] == ["own-0", "own-1", "own-2"]
    assert found["chance"] == 0.25
    base = found["methods"]["base"]
    assert base["steering"]["mode"] == "off"
    assert base["steered"] == {"mode off": 3}
    assert found["methods"]["scaling"]["steered"] == {"alpha 3": 3}
    for row in found["answers"]:
        adaptive = row["adaptive"]
        assert adaptive["alpha"] == (0.3 if adaptive["confidence"] < 0.4 else 3.0)
        # The branch's answer is that of scaling with its alpha.
        if adaptive["alpha"] == 3.0:
            assert adaptive["text"] == row["scaling"]["text"]


def test_bad_rows_are_left_out(
    run: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its reason, whatever is wrong; the others' figures are those without them."""
    good = (data / "mine/own.jsonl").read_bytes().splitlines()
    row = json.loads(good[0])
    (data / "mine/broken.png").write_bytes(b"no picture")
    bad: list[tuple[Any, str]] = [
        (row | {"image": "absent.png"}, "no such file"),
        (row | {"image": "broken.png"}, "no readable image"),
        (row | {"image": None}, "image is null"),
        (row | {"image": "http://127.0.0.1:9/x.png"}, "image"),
        (row | {"question": "far " * 2000}, "maximum context length is 512"),
        (row | {"prompt": "USER: half \ud83d ASSISTANT:"}, "prompt is no Unicode text"),
        (row | {"choices": "left"}, "choices must be a list"),
        (row | {"answer": None}, "answer must be"),
    ]
    lines = [json.dumps(b | {"id": f"bad-{n}"}).encode() for n, (b, _) in enumerate(bad)]
    lines += [b"{not json", b"\xe9", b"[" * 100_000, good[0]]
    reasons = [reason for _, reason in bad]
    reasons += ["line 17 is not JSON", "line 19 is not UTF-8", "nested", "occurs twice"]
    mixed = [line for pair in zip(lines, [*good, *[b""] * 8], strict=True) for line in pair]
    (data / "mine/mixed.jsonl").write_bytes(b"\n".join(mixed))
    clean = run("--data", str(data / "mine/own.jsonl"), *STEER)
    out = tmp_path / "mixed.json"
    words = ["--model", "tiny", "--max-tokens", str(TOKENS), "-o", str(out), *STEER]
    assert cli.main(["eval", "--data", str(data / "mine/mixed.jsonl"), *words]) == 3
    assert f"{len(lines)} rows are left out: see `errors` in {out}" in capsys.readouterr().err
    found = json.loads(out.read_bytes())
    for name in ("answers", "methods", "questions", "chance"):
        assert found[name] == clean[name]
    assert clean["errors"] == []
    told = {error["error"] for error in found["errors"]}
    assert len(told) == len(lines)
    assert all(any(reason in one for one in told) for reason in reasons)
    assert f"{len(lines)} rows could not be asked" in out.with_suffix(".html").read_text("utf-8")


def test_own_scorer_and_preset_file(
    run: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptvis_vllm.steering.preset import write_preset

    write_preset(tmp_path / "mine.json", AdaptVis(0.5, 2.0, 0.3), {})
    (tmp_path / "judge.py").write_text("def long(question, text):\n    return len(text) > 4\n")
    monkeypatch.chdir(tmp_path)
    found = run(
        "--data", str(data / "mine.parquet"), "--preset", "mine.json", "--scorer", "judge:long"
    )
    assert list(found["methods"]) == ["base", "adaptive"]
    for row in found["answers"]:
        assert row["base"]["right"] is (len(row["base"]["text"]) > 4)


def test_chat_template_or_raw_prompt(engine: Any, data: Path) -> None:
    """The raw prompt of a question is sent unless the chat template is asked for."""
    raw = benchmarks.load("controlled_a", str(data)).questions[0]
    asked = Question(raw.id, raw.images, raw.question, raw.answer)
    sent = [
        answer(engine, [q], [None], max_tokens=TOKENS, chat=c)[0][0].token_ids
        for q, c in ((raw, False), (raw, True), (asked, False))
    ]
    assert sent[1] == sent[2] != sent[0]


def test_answers_share_the_prompt(engine: Any, data: Path) -> None:
    """Question by question: the second steering finds all full blocks before n in the cache."""
    questions = benchmarks.load(None, str(data / "mine/own.jsonl")).questions
    engine.reset_prefix_cache()
    rows = answer(engine, questions, [None, ScalingVis(2.0)], max_tokens=2)
    for first, second in rows:
        assert second.computed < first.computed
    with pytest.raises(ValueError, match=r"question own-0: .*maximum context length is 512"):
        answer(engine, [Question("own-0", questions[0].images, "far " * 2000, "x")], [None])


def evaluation(engine: Any, data: Path) -> Evaluation:
    """The tiny model's words are random; a scorer that halves them fills every plot."""
    benchmark = benchmarks.load("controlled_a", str(data))
    halves = replace(benchmark, scorer=lambda q, text: len(text) % 2 == 0)
    methods = {"base": Off(), "scaling": ScalingVis(3.0), "adaptive": AdaptVis(0.3, 3.0, 0.4)}
    answers = answer(engine, halves.questions, list(methods.values()), max_tokens=TOKENS)
    outcomes = judge(halves, halves.questions, methods, answers)
    return Evaluation(halves, "all", halves.questions, outcomes, {"model": "tiny & <random>"})


@needs_chromium
def test_page_in_a_browser(engine: Any, data: Path, tmp_path: Path) -> None:
    """Screenshots: out/tests/eval_light.png and eval_dark.png."""
    found = evaluation(engine, data)
    path = tmp_path / "page.html"
    path.write_text(page(found), encoding="utf-8")
    for scheme in ("light", "dark"):
        screenshot(path, ARTEFACTS / f"eval_{scheme}.png", tmp_path, dark=scheme == "dark")
    measured = measure(path, tmp_path)
    changed = sum(o.mended + o.broken for o in found.outcomes.values())
    assert changed
    all_plots_visible(measured, least=4 + min(changed, 2))
    titles = [figure["title"] for figure in measured["figures"]]
    assert {"Accuracy", "Gain over the base", "Accuracy by relation"} <= set(titles)
    assert as_json(found)["facts"]["model"] == "tiny & <random>"
    assert "tiny &amp; &lt;random&gt;" in path.read_text(encoding="utf-8")


def test_page_escapes_and_is_self_contained() -> None:
    hostile = "<script>alert(1)</script>"
    text = render(
        hostile,
        [Section(hostile, [hostile], [Table([hostile], [[hostile]])], [Figure(b"x", hostile)])],
        facts={hostile: hostile},
        warnings=[hostile],
    )
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "controled_a"], "--dataset must be one of"),
        (["--dataset", "controlled_a", "--data", "nowhere"], "--data: no such folder nowhere"),
        (["--data", "DATA/mine/own.jsonl", "--split", "test"], "own has no split 'test'"),
        (["--data", "DATA/mine/own.jsonl", "--limit", "0"], "--limit must be >= 1, not 0"),
        (["--data", "DATA/mine/own.jsonl", "--max-tokens", "0"], "--max-tokens must be >= 1"),
        (["--data", "DATA/mine/own.jsonl", "--methods", "all"], "--methods must be among"),
        (["--data", "DATA/mine/own.jsonl", "--alpha", "0"], "alpha must be a number greater"),
        (["--data", "DATA/mine/own.jsonl", "--scorer", "contained"], "--scorer must be one of"),
        (["--data", "DATA/mine/own.jsonl", "-o", "no/x.json"], "--output: no such folder no"),
        (["--data", "DATA/mine/own.jsonl", "-o", "DATA/mine/own.jsonl"], "is the input"),
        (["--data", "DATA/lost.jsonl"], "question 1: image: no such file"),
        (["--data", "DATA/val2017/000000000139.jpg"], "must end in .jsonl or .parquet"),
    ],
)
def test_mistakes_are_one_sentence(
    data: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before an engine is started, let alone work lost."""
    row = {"image": "lost.png", "question": "Where?", "answer": "left"}
    (data / "lost.jsonl").write_text(json.dumps(row) + "\n")
    words = [word.replace("DATA", str(data)) for word in options]
    assert cli.main(["eval", "--model", "nowhere", *words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("adaptvis eval: ")
    assert message in lines[0]


def test_command(model: Path, data: Path, tmp_path: Path) -> None:
    """As a user calls it, with an engine of its own; on a terminal that knows ASCII only."""
    text = (data / "mine/own.jsonl").read_text("utf-8").replace('"own-', '"\u00e9-')
    (data / "mine/\u00e9.jsonl").write_text(text, "utf-8")
    words = [sys.executable, "-m", "adaptvis_vllm.cli", "eval", "--data", "mine/\u00e9.jsonl"]
    words += [*STEER, "--model", str(model), "--max-tokens", "4", "--max-model-len", "256"]
    words += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "64M"]
    words += ["-o", str(tmp_path / "out.json")]
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONWARNDEFAULTENCODING": "1"}
    done = subprocess.run(words, cwd=data, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    first, head, *rows = done.stdout.splitlines()
    assert first == f"\\xe9, all, 4 questions, {model}"
    locale = [line for line in done.stderr.splitlines() if "EncodingWarning" in line]
    assert not [line for line in locale if "/adaptvis_vllm/" in line]
    assert head.split()[:3] == ["method", "setting", "accuracy"]
    assert [row.split()[0] for row in rows[:3]] == ["base", "ScalingVis", "AdaptVis"]
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [row["id"] for row in found["answers"]] == [f"\u00e9-{n}" for n in range(4)]
    assert (tmp_path / "out.html").is_file()
