"""Preemption and abortion at every moment; slots and state pass to the next owner clean."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.engine import (
    BLOCK,
    flat,
    generate,
    moment,
    prompt,
    runner,
    sampling,
    scheduler,
    tokens,
)

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis

LOW, HIGH = AdaptVis(0.3, 3.0, 1.0), AdaptVis(0.3, 3.0, 0.0)
TEXT = "The cat sat on the mat and the dog sat under the table. " * 2


def drive(
    llm: Any, items: list[Any], params: list[Any], on_step: Callable[[int, list[str]], None]
) -> dict[int, Any]:
    """Finished outputs by number; on_step(step, internal request ids) runs before each step."""
    ids = [
        llm.enqueue([item], param, use_tqdm=False)[0]
        for item, param in zip(items, params, strict=True)
    ]
    names = {internal.partition("-")[0]: number for number, internal in enumerate(ids)}
    done: dict[int, Any] = {}
    step = 0
    while llm.llm_engine.has_unfinished_requests():
        on_step(step, ids)
        for output in llm.llm_engine.step():
            if output.finished:
                done[names[output.request_id]] = output
        step += 1
    return done


def preempt_all(llm: Any, cold: bool) -> int:
    """Preempt as the scheduler does under memory pressure; cold: forget cached blocks too."""
    sched = scheduler(llm)
    count = len(sched.running)
    while sched.running:
        sched._preempt_request(sched.running.pop(), time.monotonic())
    if cold:
        assert sched.reset_prefix_cache(reset_running_requests=True)
    return count


def aligned(llm: Any, image: int, multiple: int) -> dict[str, Any]:
    """A prompt that ends exactly at a block's end."""
    for words in range(300):
        item = prompt(image, "cat " * words)
        if len(llm.get_tokenizer().encode(item["prompt"])) + 15 == multiple:
            return item
    raise AssertionError("no such prompt")


@pytest.fixture
def mixed(engine: Any) -> tuple[list[Any], list[Any]]:
    items = [
        prompt(0, TEXT),
        aligned(engine, 1, 2 * BLOCK),
        aligned(engine, 2, 2 * BLOCK),
        prompt(3),
        aligned(engine, 4, 3 * BLOCK),
        aligned(engine, 5, 2 * BLOCK + 1),
        aligned(engine, 6, 2 * BLOCK),
    ]
    options: list[dict[str, Any]] = [{}, {}, {"temperature": 1.0, "seed": 3}, {}, {}, {}, {}]
    steerings = [LOW, HIGH, LOW, None, ScalingVis(3.0), AdaptVis(0.5, 2.0, 0.4)]
    steerings.append(Candidates((0.3, 3.0)))
    params = [
        sampling(s, max_tokens=6, ignore_eos=True, **o)
        for s, o in zip(steerings, options, strict=True)
    ]
    return items, params


@pytest.fixture
def small_chunks(engine: Any) -> Iterator[None]:
    sched = scheduler(engine)
    budget, sched.max_num_scheduled_tokens = sched.max_num_scheduled_tokens, 100
    yield
    sched.max_num_scheduled_tokens = budget


@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
@pytest.mark.usefixtures("small_chunks")
def test_preemption_at_every_step(
    engine: Any, mixed: tuple[list[Any], list[Any]], cold: bool
) -> None:
    """In mid-prefill, after the choice of alpha, in every decode step."""
    items, params = mixed
    expected = []
    for item, param in zip(items, params, strict=True):
        assert engine.reset_prefix_cache()
        expected += generate(engine, [item], param)
    moments: Counter[str] = Counter()
    at, last = 1, False
    while not last:
        assert engine.reset_prefix_cache()
        last = True

        def on_step(step: int, _ids: list[str], at: int = at) -> None:
            nonlocal last
            if step == at:
                last = False
                for request in scheduler(engine).running:
                    moments[moment(request)] += 1
                preempt_all(engine, cold)

        done = drive(engine, items, params, on_step)
        for number, other in enumerate(expected):
            assert tokens(done[number]) == tokens(other), (at, number)
            mine = flat(done[number].adaptvis)
            assert mine == pytest.approx(flat(other.adaptvis), abs=1e-5)
        at += 1
    assert moments["prefill"]
    assert moments["decode"]


@pytest.mark.usefixtures("small_chunks")
def test_preempted_again_and_again(engine: Any, mixed: tuple[list[Any], list[Any]]) -> None:
    """Every third step, on the blocks that the earlier tries left in the cache."""
    items, params = mixed
    expected = []
    for item, param in zip(items, params, strict=True):
        assert engine.reset_prefix_cache()
        expected += generate(engine, [item], param)
    assert engine.reset_prefix_cache()
    done = drive(
        engine, items, params, lambda step, _: step % 3 == 2 and preempt_all(engine, False)
    )
    assert [tokens(done[i]) for i in range(len(items))] == [tokens(e) for e in expected]


@pytest.mark.parametrize("second", range(2, 7))
def test_preempted_after_the_choice(engine: Any, second: int) -> None:
    """Right after the first token, then in decode, on a block whose last position is n: it holds
    keys and values of the chosen row."""
    item, params = aligned(engine, 1, 2 * BLOCK), sampling(HIGH, logprobs=5, ignore_eos=True)
    assert engine.reset_prefix_cache()
    (expected,) = generate(engine, [item], params)
    assert engine.reset_prefix_cache()
    seen = []

    def on_step(step: int, _ids: list[str]) -> None:
        if step in (1, second):
            seen.extend(moment(request) for request in scheduler(engine).running)
            preempt_all(engine, cold=False)

    output = drive(engine, [item], [params], on_step)[0]
    assert seen == ["decode", "decode"]
    assert tokens(output) == tokens(expected)
    for mine, other in zip(output.outputs[0].logprobs, expected.outputs[0].logprobs, strict=True):
        wanted = {token: entry.logprob for token, entry in other.items()}
        assert {t: e.logprob for t, e in mine.items()} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.usefixtures("small_chunks")
def test_abort_in_every_phase(engine: Any, mixed: tuple[list[Any], list[Any]]) -> None:
    """The others go on as if nothing were; a newcomer in the freed slot is steered afresh."""
    items, params = mixed
    expected = {}
    for number, (item, param) in enumerate(zip(items, params, strict=True)):
        assert engine.reset_prefix_cache()
        expected[number] = tokens(generate(engine, [item], param)[0])
    at, last = 0, False
    while not last:
        last = True
        victims = (0, 4) if at % 2 else (1, 2)

        def on_step(
            step: int, ids: list[str], at: int = at, victims: tuple[int, ...] = victims
        ) -> None:
            nonlocal last
            if step == at:
                last = False
                engine.llm_engine.abort_request([ids[v] for v in victims], internal=True)

        done = drive(engine, items, params, on_step)
        for number, output in done.items():
            if output.outputs[0].finish_reason != "abort":
                assert tokens(output) == expected[number], (at, number)
        (again,) = generate(engine, [items[1]], params[1])
        assert tokens(again) == expected[1]
        at += 1
    generate(engine, [prompt(None)], sampling(max_tokens=1))
    generate(engine, [prompt(None)], sampling(max_tokens=1))
    steering = runner(engine).adaptvis
    assert not steering.held.requests
    assert not steering.held.pending
    assert len(steering.held._free) == steering.held._slots_used
