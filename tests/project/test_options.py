"""Engines with options of their own: one after the other in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.engine import close, generate, make_llm, moment, prompt, sampling, scheduler, tokens

from adaptvis_vllm import AdaptVis, Off, ScalingVis

LOW, HIGH = AdaptVis(0.3, 3.0, 1.0), AdaptVis(0.3, 3.0, 0.0)
TEXT = "The cat sat on the mat and the dog sat under the table. " * 2


def test_server_wide_defaults(model: Path) -> None:
    """`additional_config` steers every request; its own parameters win; "off" switches off."""
    defaults = {"alpha_low": 0.3, "alpha_high": 3.0, "threshold": 1.0}
    llm = make_llm(model, additional_config={"adaptvis": defaults})
    try:
        steerings = [None, LOW, Off(), ScalingVis(3.0), HIGH]
        plain, low, off, scaling, high = generate(
            llm, [prompt(0)] * 5, [sampling(s) for s in steerings]
        )
        partial = sampling()
        partial.extra_args = {"adaptvis_threshold": 0.0}
        (merged,) = generate(llm, [prompt(0)], partial)
    finally:
        close(llm)
    assert plain.adaptvis == low.adaptvis
    assert tokens(plain) == tokens(low) != tokens(off)
    assert off.adaptvis["reason"] == "mode off"
    assert scaling.adaptvis["alpha"] == merged.adaptvis["alpha"] == high.adaptvis["alpha"] == 3.0
    assert tokens(merged) == tokens(high) == tokens(scaling)


def counting(original: Callable[..., Any], seen: Counter[str]) -> Callable[..., Any]:
    def call(request: Any, *args: Any, **kwargs: Any) -> None:
        seen[moment(request)] += 1
        original(request, *args, **kwargs)

    return call


def test_tiny_cache_preempts_by_itself(model: Path) -> None:
    """vLLM's own preemptions: eight requests where there is room for a few."""
    items = [prompt(i % 6, TEXT) for i in range(8)]
    steerings = [LOW, HIGH, None, ScalingVis(3.0)] * 2
    params = [sampling(s, max_tokens=48, ignore_eos=True) for s in steerings]
    results = []
    for blocks in (200, 13):
        llm = make_llm(model, num_gpu_blocks_override=blocks, max_model_len=384)
        preemptions: Counter[str] = Counter()
        sched = scheduler(llm)
        original = sched._preempt_request

        sched._preempt_request = counting(original, preemptions)
        try:
            outputs = generate(llm, items, params)
        finally:
            close(llm)
        results.append([(tokens(o), o.adaptvis and o.adaptvis["alpha"]) for o in outputs])
        assert bool(preemptions) == (blocks == 13)
    assert results[0] == results[1]


def test_the_most_room_in_the_shortest_engine(model: Path) -> None:
    """More rows than the requests of a profiling run have positions. Defaults may be candidates."""
    alphas = tuple(0.25 + 0.05 * i for i in range(64))
    llm = make_llm(
        model,
        max_model_len=48,
        max_num_seqs=2,
        additional_config={"adaptvis": {"candidates": list(alphas)}},
    )
    try:
        item = prompt(0, "?")
        found, steered = generate(llm, [item] * 2, [sampling(max_tokens=1), sampling(LOW)])
        assert [c["alpha"] for c in found.adaptvis["candidates"]] == list(alphas)
        assert steered.adaptvis["alpha"] == 0.3
        for number in (0, 30, 63):
            (one,) = generate(llm, [item], sampling(ScalingVis(alphas[number]), max_tokens=1))
            assert found.adaptvis["candidates"][number]["token"] == one.outputs[0].text
    finally:
        close(llm)
