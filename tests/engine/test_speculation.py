"""N-gram speculative decoding changes no answer of a steered request."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.cases import read_rows, write_rows
from support.engine import (
    BLOCK,
    close,
    first_logprobs,
    generate,
    make_llm,
    prompt,
    sampling,
    scheduler,
)
from support.parity import OPTIONS, answer, assert_parity, read_answers

from adaptvis_vllm import AdaptVis, ScalingVis, SteeringParams

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
STEERINGS: list[SteeringParams | None] = [
    None,
    ScalingVis(3.0),
    AdaptVis(0.3, 3.0, 0.4),
    AdaptVis(0.3, 3.0, 0.4, confidence="entropy"),
    AdaptVis(3.0, 0.3, 0.4, confidence="margin", layers="1,3"),
]
REPEATED = "The cat sat on the mat and the cat sat on the mat. Where is the cat?"


@pytest.fixture(scope="module", autouse=True)
def without_llvmlite() -> Iterator[None]:
    """N-gram look-up imports numba. vLLM 0.32 on a CPU starts no further engine in a process with
    llvmlite: looking for kernels in every module, it stumbles over that one's."""
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("llvmlite", "numba")]:
        del sys.modules[name]


@contextmanager
def counted(llm: Any) -> Iterator[Counter[str]]:
    """Of the engine's steps: drafts, and steps in which a prompt joins somebody's drafts."""
    sched = scheduler(llm)
    original, count = sched.schedule, Counter()

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        drafts = output.scheduled_spec_decode_tokens
        new = {r.req_id for r in output.scheduled_new_reqs}
        count["drafts"] += sum(map(len, drafts.values()))
        count["mixed"] += bool(new) and bool(drafts.keys() - new)
        count["padded"] += len(drafts.keys() & new)
        count["steps"] += bool(output.total_num_scheduled_tokens)
        return output

    sched.schedule = schedule
    try:
        yield count
    finally:
        del sched.schedule


def same_report(one: Any, other: Any) -> bool:
    mine, theirs = dict(one.adaptvis), dict(other.adaptvis)
    confidence, expected = mine.pop("confidence"), theirs.pop("confidence")
    return mine == theirs and confidence == pytest.approx(expected, abs=1e-4)


def run(llm: Any) -> tuple[list[Any], list[Any], Counter[str], Counter[str]]:
    """Answers to many requests that overlap, then to one whose last token arrives alone."""
    requests = [(image, steering) for image in range(4) for steering in STEERINGS]
    params = [sampling(s, max_tokens=8 + 3 * i, logprobs=5) for i, s in requests]
    with counted(llm) as many:
        outputs = generate(llm, [prompt(i, REPEATED) for i, _ in requests], params)
    length = len(outputs[0].prompt_token_ids)
    alone = prompt(0, "!" * ((1 - length) % BLOCK) + REPEATED)
    generate(llm, [alone], sampling(max_tokens=1))
    with counted(llm) as hits:
        again = [generate(llm, [alone], sampling(s, max_tokens=24))[0] for s in STEERINGS]
    assert all(len(output.prompt_token_ids) % BLOCK == 1 for output in again)
    assert all(output.num_cached_tokens for output in again)
    return outputs, again, many, hits


def test_same_tokens_as_without_speculation(model: Path) -> None:
    results = []
    for speculation in (None, NGRAM):
        llm = make_llm(
            model, speculative_config=speculation, max_num_seqs=4, max_num_batched_tokens=64
        )
        try:
            results.append(run(llm))
            if speculation is not None:
                asked = sampling(ScalingVis(2.0, rows="generated"))
                with pytest.raises(ValueError, match="adaptvis_rows must be 'last' with specul"):
                    generate(llm, [prompt(0)], asked)
        finally:
            close(llm)
    (outputs, again, plain, plain_hits), (drafted, drafted_again, many, hits) = results
    assert not plain["drafts"]
    assert not plain_hits["drafts"]
    assert many["drafts"]
    assert many["mixed"], "no prompt ended in a step that holds drafts"
    assert many["steps"] < plain["steps"], "no draft was accepted"
    assert hits["padded"] == len(STEERINGS), "placeholders behind the last prompt token"
    for one, other in zip(outputs + again, drafted + drafted_again, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert (one.adaptvis is None) == (other.adaptvis is None)
        assert one.adaptvis is None or same_report(one, other)
    for one, other in zip(outputs, drafted, strict=True):
        assert first_logprobs(one) == pytest.approx(first_logprobs(other), abs=1e-4)


def test_model_runner_v2(model: Path, rows: Path) -> None:
    """Interpreted; scaling and adaptive, one and two pictures, several chunks."""
    chosen = [row for row in read_rows(rows) if row["id"] in (2, 20, 21, 55)]
    for row in chosen:
        row["adaptvis"].pop("maps_tokens", None)  # refused with speculation
    path = write_rows(rows.with_name("speculation.jsonl"), chosen)
    expected = answer("reference", model, path, "reference", "--logprobs", "5")
    out, maps = path.with_name("speculation-v2.jsonl"), path.with_name("speculation-v2-maps")
    files = ("--model", model, "--input", path, "--output", out, "--maps", maps)
    options = (*OPTIONS, "--dtype", "float32", "--speculative-config", json.dumps(NGRAM))
    program = Path(__file__).parents[1] / "support" / "speculation_v2.py"
    command = [sys.executable, program, "generate", *files, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_parity(read_answers(out, maps), expected)
    assert any(row["maps"] for row in expected)
    assert int(done.stderr.rpartition("accepted drafts: ")[2]) > 0
