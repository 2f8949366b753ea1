"""Adaptive steering on a clock without noise, in full steps, and in the caches it leaves behind."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
import torch
from support.engine import (
    close,
    generate,
    make_llm,
    prompt,
    runner,
    sampling,
    scheduler,
    side_rows_seen,
    tokens,
)

from adaptvis_vllm import AdaptVis, ScalingVis, SteeringParams
from adaptvis_vllm.engine.attention import cpu
from adaptvis_vllm.engine.runner import check

ADAPTIVE = AdaptVis(0.3, 3.0, 0.4)
STEP, TOKEN = 0.024, 0.00195  # seconds that a step and a token of it are charged
WORDS = "The cat sat on the mat and the dog sat under the table. "


@pytest.fixture(scope="module")
def small(model: Path) -> Iterator[Any]:
    """Steps of 64 tokens: prompts share steps with others, and are cut by them."""
    llm = make_llm(model, max_num_batched_tokens=64)
    yield llm
    close(llm)


def first_tokens(
    llm: Any, steering: SteeringParams | None, load: float, row: float = 0.0
) -> tuple[list[float], list[tuple[int, ...]]]:
    """(seconds from each request's arrival to its first token, tokens of each step).

    The real scheduler and runner on a clock that a step moves by STEP + TOKEN a scheduled token
    + row a side row. Poisson arrivals; load: of what the clock could do if it never idled.
    """
    assert llm.reset_prefix_cache()
    rng = random.Random(0)
    engine, sched, steer = llm.llm_engine, scheduler(llm), runner(llm).adaptvis
    items = [prompt(i, WORDS * rng.randint(0, 3)) for i in range(24)]
    pause = 64 * TOKEN / load
    arrivals: list[float] = []
    for _ in items:
        arrivals.append((arrivals[-1] if arrivals else 0.0) + rng.expovariate(1 / pause))
    params = sampling(steering, max_tokens=6, ignore_eos=True)
    schedule, copied = sched.schedule, steer.before_forward
    steps: list[tuple[int, ...]] = []
    extra: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            steps.append(tuple(output.num_scheduled_tokens.values()))
        return output

    def before_forward(*args: Any) -> None:
        extra.append(steer.extra_rows)
        copied(*args)

    sched.schedule, steer.before_forward = counted, before_forward
    now, sent, first = 0.0, 0, {}
    names: dict[str, int] = {}
    try:
        while sent < len(items) or engine.has_unfinished_requests():
            if not engine.has_unfinished_requests():
                now = max(now, arrivals[sent])
            while sent < len(items) and arrivals[sent] <= now:
                (name,) = llm.enqueue([items[sent]], params, use_tqdm=False)
                names[name.partition("-")[0]] = sent
                sent += 1
            before = len(steps)
            extra.clear()
            outputs = engine.step()
            for step in steps[before:]:
                now += STEP + TOKEN * sum(step) + row * sum(extra)
            for output in outputs:
                if output.outputs[0].token_ids:
                    first.setdefault(names[output.request_id], now)
    finally:
        del sched.schedule, steer.before_forward
    return [first[i] - arrivals[i] for i in range(len(items))], steps


@pytest.mark.parametrize("load", [0.5, 0.75])
def test_first_tokens_come_when_they_come_without_steering(small: Any, load: float) -> None:
    """Request by request, to the last digit; the same steps with the same tokens."""
    plain, steps = first_tokens(small, None, load)
    assert max(len(step) for step in steps) > 2
    assert max(sum(step) for step in steps) == 64
    assert len({round(t, 6) for t in plain}) > 10
    assert first_tokens(small, ADAPTIVE, load) == (plain, steps)
    assert first_tokens(small, ScalingVis(2.0), load) == (plain, steps)


def test_where_side_rows_are_charged_like_tokens(small: Any) -> None:
    """Two of them weigh little beside a picture, even one of 16 tokens."""
    plain, _ = first_tokens(small, None, 0.75)
    adaptive, _ = first_tokens(small, ADAPTIVE, 0.75, row=TOKEN)
    assert adaptive != plain
    assert median(adaptive) < 1.15 * median(plain)
    assert quantiles(adaptive, n=10)[-1] < 1.15 * quantiles(plain, n=10)[-1]


def test_a_full_step_has_room(small: Any) -> None:
    """Side rows beside 64 tokens; the scheduler's budget is the user's."""
    items = [prompt(i) for i in range(8)]
    params = sampling(ADAPTIVE, max_tokens=20, ignore_eos=True)
    expected = []
    for item in items:
        assert small.reset_prefix_cache()
        expected += generate(small, [item], params)
    assert small.reset_prefix_cache()
    sched = scheduler(small)
    assert sched.max_num_scheduled_tokens == 64
    assert sched.scheduler_config.max_num_batched_tokens == 64
    assert runner(small).max_num_tokens == 64 + 2 * 8
    with side_rows_seen(runner(small).adaptvis) as extra:
        found = generate(small, items, params)
    assert max(extra) > (64, 0)
    for one, other in zip(found, expected, strict=True):
        assert tokens(one) == tokens(other)
        assert one.adaptvis == pytest.approx(other.adaptvis, abs=1e-5)


@pytest.mark.parametrize("steering", [AdaptVis(1, 1, 0.5), AdaptVis(0.3, 3.0, 1.0)])
def test_the_cache_holds_the_chosen_row(small: Any, steering: SteeringParams) -> None:
    """Keys and values of the last prompt position are what steering it in place leaves there."""
    given = ScalingVis(steering.alpha_low)
    assert torch.allclose(*(last_position(small, s) for s in (steering, given)), atol=1e-5)
    if steering.alpha_low != 1:
        others = [last_position(small, s) for s in (None, ScalingVis(steering.alpha_high))]
        for other in others:
            assert not torch.allclose(last_position(small, steering), other, atol=1e-3)


def last_position(engine: Any, steering: SteeringParams | None) -> torch.Tensor:
    """[layers, ...]: what the cache holds of position n after a request of one token."""
    assert engine.reset_prefix_cache()
    caches, seen = runner(engine).kv_caches, []
    sched = scheduler(engine)
    finish = sched._free_request

    def free_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        block = sched.kv_cache_manager.get_block_ids(request.request_id)[0]
        size = sched.block_size
        page, place = divmod(request.num_prompt_tokens - 1, size)
        for cache in caches:
            key, value = cache[block[page]].view(cache.shape[1], 2, -1).unbind(1)
            key = key.view(cache.shape[1], -1, size)[..., place]
            seen.extend([key.clone(), value.view(cache.shape[1], size, -1)[:, place].clone()])
        return finish(request, *args, **kwargs)

    sched._free_request = free_request
    try:
        generate(engine, [prompt(0)], sampling(steering, max_tokens=1))
    finally:
        del sched._free_request
    return torch.stack(seen)


def test_the_start_up_check_calls_every_kernel_that_has_to_be_compiled(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU: those of side rows, that of a row in its place, and that of maps."""
    called: list[int] = []
    weighed: list[int] = []
    compute, weigh = cpu.kernel.steer_rows, cpu.weigh_rows

    def noted(*args: Any, **more: Any) -> None:
        called.append(int(args[14].sum()))
        compute(*args, **more)

    def noted_too(*args: Any, **more: Any) -> None:
        weighed.append(len(args[4]))
        weigh(*args, **more)

    monkeypatch.setattr(cpu.kernel, "steer_rows", noted)
    monkeypatch.setattr(cpu, "weigh_rows", noted_too)
    worker = small.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    assert small.reset_prefix_cache()
    differences = check.measure(worker)
    assert set(differences) == {"an image", "text"}
    assert set(called) == {2}
    assert not weighed
    called.clear()
    monkeypatch.setattr(check, "WARMED", ("cpu",))
    assert set(check.measure(worker)) == {"an image", "text"}
    assert set(called) == {2, 0}
    assert set(weighed) == {1}


def test_a_layer_leaves_its_memory_to_the_next_one(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the choice, side rows' keys and values alone are held: not those of the whole step."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    recompute = cpu.CpuLayer.recompute

    def noted(self: Any, query: Any, key: Any, value: Any, *args: Any) -> None:
        alive.append(sum(reference() is not None for reference in held))
        held.extend(weakref.ref(t) for t in (query, key, value))
        recompute(self, query, key, value, *args)

    monkeypatch.setattr(cpu.CpuLayer, "recompute", noted)
    generate(small, [prompt(3)], sampling(ADAPTIVE))
    assert alive == [0, 0, 0, 0]
