"""`adaptvis verify`: it passes where steering is right, and a planted fault fails its step."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaptvis_vllm.bench import command as bench
from adaptvis_vllm.engine.attention import cpu
from adaptvis_vllm.engine.steps import Steering
from adaptvis_vllm.reference.model import ReferenceModel
from adaptvis_vllm.verify import STEPS, exact, graphs, itself
from adaptvis_vllm.verify.answers import Answer, of_reference
from adaptvis_vllm.verify.checks import Check, Configuration, as_json, markdown
from adaptvis_vllm.verify.questions import draw, steered

QUESTIONS = 16


@pytest.fixture(scope="module")
def asks() -> Any:
    return draw(QUESTIONS)


@pytest.fixture(scope="module")
def reference(model: Path, asks: Any) -> tuple[dict[str, list[Answer]], dict[str, Any]]:
    """Answers of plain transformers by way, and the ways."""
    plain = SimpleNamespace(model=ReferenceModel(model))
    given = {
        way: of_reference(plain, steered(asks, steering), itself.TOKENS)
        for way, steering in exact.GIVEN.items()
    }
    threshold = exact.threshold(given[exact.UNSTEERED])
    answers = exact.with_choice(given, given[exact.UNSTEERED], threshold)
    return answers, exact.ways(threshold)


@pytest.fixture(scope="module")
def host(engine: Any) -> Any:
    """What a verifying process holds of its engine."""
    core = engine.llm_engine.engine_core
    scheduler = core.engine_core.scheduler
    return SimpleNamespace(llm=engine, core=core, scheduler=scheduler)


def exact_checks(host: Any, asks: Any, reference: Any) -> dict[str, Check]:
    answers, ways = reference
    mine = {way: itself.fresh(host, steered(asks, s)) for way, s in ways.items()}
    checks, _ = exact.compare(mine, answers, None, "float32")
    return {check.name: check for check in checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


def test_exact_and_itself_pass(host: Any, asks: Any, reference: Any) -> None:
    checks = exact_checks(host, asks, reference)
    assert not failed(checks), checks
    assert checks["adaptive: the same tokens"].passed
    _, ways = reference
    threshold = ways[exact.ADAPTIVE].threshold
    low = [exact.confidence(a) < threshold for a in reference[0][exact.UNSTEERED]]
    assert 0 < sum(low) < QUESTIONS  # both alphas are tried
    vanilla = itself.bystanders(host, asks)
    checks = {c.name: c for c in itself.run(host, asks, vanilla, 0.0, "float32")}
    assert not failed(checks), checks
    for name in ("prefix cache on = off", "preempted = left alone"):
        assert checks[name].passed, checks[name]


def wrong_alpha(rows: dict[str, Any]) -> dict[str, Any]:
    return rows | {"alpha": rows["alpha"] * 1.1}


def image_token_left_out(rows: dict[str, Any]) -> dict[str, Any]:
    words = rows["span_words"].clone()
    for start in rows["span_starts"].tolist():
        word = int(words[start])
        words[start] = word & (word - 1)  # the lowest set bit
    return rows | {"span_words": words}


ROWS = ("rows", "reqs", "kv_lens", "slots", "alpha", "span_words", "span_starts", "span_lens")


@pytest.mark.parametrize("fault", [wrong_alpha, image_token_left_out])
def test_a_fault_in_the_rows_fails_exact(
    fault: Callable[[dict[str, Any]], dict[str, Any]],
    host: Any,
    asks: Any,
    reference: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute = cpu.kernel.steer_rows

    def faulty(out: Any, query: Any, cache: Any, table: Any, *tensors: Any, **more: Any) -> None:
        rows = fault(dict(zip(ROWS, tensors, strict=False)))
        given = (*(rows[name] for name in ROWS), *tensors[len(ROWS) :])
        compute(out, query, cache, table, *given, **more)

    monkeypatch.setattr(cpu.kernel, "steer_rows", faulty)
    wrong = failed(exact_checks(host, asks, reference))
    assert "scaling 0.5: log-probabilities, first token" in wrong
    assert not any(name.startswith("unsteered") for name in wrong)


def test_a_skipped_layer_fails_exact(
    host: Any, asks: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = cpu.kernel.steer_rows, iter(range(10**9))

    def skipping(*args: Any, **more: Any) -> None:
        if next(calls) % 4 != 2:  # of the model's four layers
            compute(*args, **more)

    monkeypatch.setattr(cpu.kernel, "steer_rows", skipping)
    assert "scaling 0.5: log-probabilities, first token" in failed(
        exact_checks(host, asks, reference)
    )


def test_unwritten_keys_and_values_fail_exact_and_itself(
    host: Any, asks: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token is right without them, the ones after it are not."""
    monkeypatch.setattr(Steering, "commit", lambda *args: None)
    wrong = failed(exact_checks(host, asks, reference))
    assert "adaptive: log-probabilities, all tokens" in wrong
    assert "adaptive: log-probabilities, first token" not in wrong
    few = asks[: 2 * itself.FEW]
    checks = {
        c.name: c for c in itself.run(host, few, itself.bystanders(host, few), 0.0, "float32")
    }
    assert "adaptive, low = high = scaling" in failed(checks)


@pytest.mark.parametrize(("moved", "wrong"), [(0.29, False), (0.31, True)])
def test_noise_decides_in_16_bit(moved: float, wrong: bool) -> None:
    """Steered answers may be 1.5 times as far from the reference as unsteered ones, no more."""

    def answers(alpha: float | None, by: float, base: float) -> list[Answer]:
        report = {"alpha": alpha, "steered": alpha is not None, "confidence": 0.5}
        logprobs = [{7: math.log(0.5) + base + by, 8: -9.0}]
        return [Answer([7], logprobs, [1], report)]

    def by_way(unsteered: float, below: float) -> dict[str, list[Answer]]:
        return {
            exact.UNSTEERED: answers(None, unsteered, 0.0),
            exact.BELOW: answers(0.5, below, -2.0),
            exact.ABOVE: answers(1.5, 0.1, 0.1),
            exact.ADAPTIVE: answers(1.5, 0.1, 0.1),
        }

    reference = by_way(0.0, 0.0)
    checks, noise = exact.compare(by_way(0.2, moved), reference, reference, "bfloat16")
    assert noise == pytest.approx(0.2)
    found = failed({check.name: check for check in checks})
    lines = {f"scaling 0.5: log-probabilities, {what}" for what in ("first token", "all tokens")}
    assert found == (lines if wrong else set())


def test_graphs_step(host: Any, asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vanilla = graphs.modes(host, asks)
    assert vanilla
    assert {mode for _, mode, _ in vanilla} == {"NONE"}  # a CPU
    checks = {c.name: c for c in graphs.run(host, asks, vanilla)}
    assert not failed(checks), checks
    assert failed({c.name: c for c in graphs.run(host, asks, vanilla[1:])}) == {
        "unsteered traffic runs plain vLLM's steps"
    }
    real = graphs.modes

    def replayed(host: Any, asks: Any) -> Any:
        return [(rows, "FULL" if rows else mode, n) for rows, mode, n in real(host, asks) or ()]

    monkeypatch.setattr(graphs, "modes", replayed)
    assert failed({c.name: c for c in graphs.run(host, asks, vanilla)}) == {
        "no step with a steered row replays a FULL graph"
    }


def test_report() -> None:
    found = [
        Configuration("CPU_ATTN", "float32", {"layers": 4}, [Check("exact", "a|b", True, "x")]),
        Configuration("CPU_ATTN", "bfloat16", {}, [Check("itself", "c", False, "1 > 0.5")]),
    ]
    result = as_json("adaptvis verify", "m", {"gpu": None, "cores": 2}, found)
    assert [c["passed"] for c in result["configurations"]] == [True, False]
    assert not result["passed"]
    text = markdown(json.loads(json.dumps(result)))
    assert "| exact | a\\|b | ok | x |" in text
    assert "| itself | c | FAILED | 1 > 0.5 |" in text
    assert "**FAILED**" in text


def gpu_script(folder: Path, **env: str) -> dict[str, str]:
    """`benchmarks/gpu.sh`: the output of each step, all of which must end well."""
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
    done = subprocess.run(
        ["bash", script, folder], env=os.environ | env, capture_output=True, text=True
    )
    logs = {path.stem: path.read_text() for path in folder.glob("gpu-*.log")}
    lines = (folder / "gpu-summary.txt").read_text().splitlines()
    assert len(lines) == len(logs), (lines, done.stderr)
    assert all(": exit 0 after " in line for line in lines), (lines, logs)
    return logs


def test_gpu_script_runs_dry(tmp_path: Path) -> None:
    """Its checks, small and on a CPU: all of the command's steps."""
    adaptvis = str(Path(sys.executable).with_name("adaptvis"))
    assert list(gpu_script(tmp_path, DRY="1", ADAPTVIS=adaptvis, PARTS="right more")) == [
        "gpu-verify-v1-CPU_ATTN-bfloat16"
    ]
    result = json.loads((tmp_path / "gpu-verify-v1-CPU_ATTN-bfloat16.json").read_text())
    assert result["passed"]
    (one,) = result["configurations"]
    assert (one["backend"], one["dtype"]) == ("CPU_ATTN", "bfloat16")
    assert {check["step"] for check in one["checks"]} == set(STEPS)


def test_benchmarks_of_the_gpu_script(tmp_path: Path) -> None:
    """They are commands that `adaptvis bench` takes; arrivals come at three quarters of vanilla's
    rate."""
    row = {"system": "vanilla", "requests_per_s": 40.0}
    (tmp_path / "gpu-llava.json").write_text(f"  {json.dumps(row)}\n")
    logs = gpu_script(tmp_path, ADAPTVIS="echo", PARTS="cost")
    assert set(logs) == {"gpu-llava", "gpu-llava-serve", "gpu-qwen"}
    for text in logs.values():
        command, *words = shlex.split(text)
        assert command == "bench"
        settings = bench._settings(bench._parser("").parse_args(words), words)
        settings.check()
        assert {"vanilla", "adaptive"} <= set(settings.systems)
    assert "--rate 30.00" in logs["gpu-llava-serve"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "exakt"], "--steps: 'exakt' is not one of exact, itself, graphs, cost"),
        (["--questions", "3"], "--questions must be >= 16, not 3"),
        (["--backends", "FLASH_ATTN"], "--backends: 'FLASH_ATTN' is not one of CPU_ATTN"),
        (["--runner", "v2"], "--runner v2 needs a GPU"),
    ],
)
def test_wrong_options(options: list[str], sentence: str) -> None:
    from adaptvis_vllm.verify import command

    with pytest.raises(ValueError, match=re.escape(sentence)):
        command.main(options, "")
