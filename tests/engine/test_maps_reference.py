"""Attention maps of one engine's requests are the reference's, however the engine computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine.test_lifecycle import TEXT, aligned, drive, preempt_all
from support.engine import (
    BLOCK,
    close,
    counted_steps,
    first_logprobs,
    generate,
    make_llm,
    moment,
    prompt,
    runner,
    sampling,
    scheduler,
    tokens,
)
from support.maps_parity import assert_maps, mapped, moved, unmapped

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis, SteeringParams
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.reference.model import ReferenceModel

LOW, HIGH = AdaptVis(0.3, 3.0, 1.0), AdaptVis(0.3, 3.0, 0.0)  # always low, always high
ALL = [
    mapped(tokens=3),
    mapped(ScalingVis(0.3), tokens=3),
    mapped(ScalingVis(3.0), tokens=3),
    mapped(LOW, tokens=3),
    mapped(HIGH, tokens=3),
    mapped(AdaptVis(0.5, 2.0, 0.4, layers="0,2"), "1-3"),
    mapped(ScalingVis(3.0, span="interval"), "0,3"),
    mapped(Candidates((0.3, 3.0)), tokens=1),
    mapped(ScalingVis(1.0), "2"),
]
Expected = Callable[[Any, SteeringParams | None], Maps | None]


@pytest.fixture(scope="module")
def wide(model: Path) -> Iterator[Any]:
    """Sixteen requests at once, in steps of 96 tokens."""
    llm = make_llm(model, max_num_seqs=16, max_num_batched_tokens=96)
    yield llm
    close(llm)


@pytest.fixture(autouse=True)
def _cold_cache(wide: Any) -> Iterator[None]:
    assert wide.reset_prefix_cache()
    yield
    assert not wide.llm_engine.has_unfinished_requests()
    assert set(runner(wide).adaptvis.held.requests) <= scheduler(wide).finished_req_ids


@pytest.fixture(scope="module")
def expected(model: Path) -> Expected:
    """The reference's maps of a prompt of `support.engine`, and of 8 tokens."""
    reference = ReferenceModel(model)

    def maps(item: Any, steering: SteeringParams | None) -> Maps | None:
        images = [item["multi_modal_data"]["image"]] if "multi_modal_data" in item else []
        return reference.generate(
            item["prompt"], images, steering, max_tokens=8, ignore_eos=True
        ).maps

    return maps


def asked(steering: SteeringParams | None, **options: Any) -> Any:
    return sampling(steering, **({"ignore_eos": True, "logprobs": 5} | options))


def test_every_mode(wide: Any, expected: Expected) -> None:
    """In one batch; off, scaling, both branches, candidates; some layers, first tokens."""
    items = [prompt(i, TEXT if i % 2 else "Where is the red cat?") for i in range(len(ALL))]
    outputs = generate(wide, items, [asked(s) for s in ALL])
    alphas = set()
    for item, steering, output in zip(items, ALL, outputs, strict=True):
        assert_maps(output.adaptvis_maps, expected(item, steering), steering)
        alphas.add(output.adaptvis["alpha"])
        if output.adaptvis["steered"] and output.adaptvis["alpha"] != 1:
            assert moved(output.adaptvis_maps) > 0.03
    assert {None, 0.3, 3.0, 1.0} < alphas


def test_sixteen_at_once_of_which_three_capture(wide: Any, expected: Expected) -> None:
    """The others' tokens are what they are without, and they have no maps."""
    kinds = (None, ScalingVis(0.5), ScalingVis(3.0), LOW, HIGH, AdaptVis(0.5, 2.0, 0.4))
    items = [prompt(i, TEXT * (i % 3)) for i in range(16)]
    steerings = [kinds[i % len(kinds)] for i in range(16)]
    plain = generate(wide, items, [asked(s, max_tokens=20) for s in steerings])
    assert {output.adaptvis_maps for output in plain} == {None}
    capturing = (4, 6, 13)  # high, unsteered, scaling
    chosen = list(steerings)
    for number in capturing:
        chosen[number] = mapped(steerings[number], tokens=4)
    assert wide.reset_prefix_cache()
    with counted_steps(wide) as steps:
        outputs = generate(wide, items, [asked(s, max_tokens=20) for s in chosen])
    assert max(map(len, steps)) == 16
    for number, (output, other) in enumerate(zip(outputs, plain, strict=True)):
        assert tokens(output) == tokens(other)
        assert first_logprobs(output) == pytest.approx(first_logprobs(other), abs=1e-5)
        if number in capturing:
            assert_maps(output.adaptvis_maps, expected(items[number], chosen[number]), number)
        else:
            assert output.adaptvis_maps is None
            assert output.adaptvis == other.adaptvis


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_chunks(wide: Any, expected: Expected, offset: int) -> None:
    """That end one token before, at and after the last prompt position."""
    item = prompt(0, TEXT)
    steerings = [ALL[0], ALL[2], mapped(LOW), mapped(HIGH, tokens=2)]
    (one,) = generate(wide, [item], asked(None))
    length = len(one.prompt_token_ids)
    sched = scheduler(wide)
    budget = sched.max_num_scheduled_tokens
    for size in (length // 2 + offset, length - 1 + offset):
        sched.max_num_scheduled_tokens = size
        try:
            for steering in steerings:
                assert wide.reset_prefix_cache()
                with counted_steps(wide) as steps:
                    (output,) = generate(wide, [item], asked(steering))
                assert next(iter(steps[0].values())) == size
                assert_maps(output.adaptvis_maps, expected(item, steering), (size, steering))
        finally:
            sched.max_num_scheduled_tokens = budget


@pytest.mark.parametrize("extra", [0, 1])
def test_what_the_prefix_cache_holds(wide: Any, expected: Expected, extra: int) -> None:
    """The last prompt token arrives alone, or with a block; steered blocks are nobody else's."""
    item = aligned(wide, 3, 2 * BLOCK + extra)
    for steering in (ALL[2], *ALL):
        (output,) = generate(wide, [item], asked(steering))
        assert_maps(output.adaptvis_maps, expected(item, steering), steering)
    assert output.num_cached_tokens == (2 if extra else 1) * BLOCK


@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
def test_preempted_at_every_step(wide: Any, expected: Expected, cold: bool) -> None:
    """In prefill and in decoding, twice."""
    items = [aligned(wide, 1, 2 * BLOCK), prompt(0, TEXT), prompt(2, TEXT), prompt(4)]
    steerings = [mapped(HIGH, tokens=4), ALL[1], ALL[0], None]
    params = [asked(s, max_tokens=6) for s in steerings]
    wanted = [expected(item, s) for item, s in zip(items, steerings, strict=True)]
    answers = []
    for item, param in zip(items, params, strict=True):
        assert wide.reset_prefix_cache()
        answers += [tokens(*generate(wide, [item], param))]
    at, last, moments = 1, False, set()
    while not last:
        assert wide.reset_prefix_cache()
        last = True

        def on_step(step: int, _ids: list[str], at: int = at) -> None:
            nonlocal last
            if step in (at, at + 2):
                last = step == at + 2 and last
                moments.update(map(moment, scheduler(wide).running))
                preempt_all(wide, cold)

        done = drive(wide, items, params, on_step)
        for number, maps in enumerate(wanted):
            assert tokens(done[number]) == answers[number], (at, number)
            assert_maps(done[number].adaptvis_maps, maps, (at, number))
        at += 1
    assert moments == {"prefill", "decode"}


def test_short_answers(wide: Any, expected: Expected) -> None:
    """The last token is never a query: one token less than the answer has, and none of one."""
    item, steering = prompt(0), mapped(HIGH, tokens=5)
    whole = expected(item, steering)
    for count in (1, 2, 4, 6):
        (output,) = generate(wide, [item], asked(steering, max_tokens=count))
        few = {name: getattr(whole, name)[: count - 1] for name in ("tokens", "rest_tokens")}
        assert_maps(output.adaptvis_maps, replace(whole, **few), count)
    (none,) = generate(wide, [prompt(None)], asked(steering))
    assert none.adaptvis["reason"] == "no image"
    assert none.adaptvis_maps is None


def test_several_choices(wide: Any, expected: Expected) -> None:
    """Of n answers the prompt's rows are the same."""
    item, steering = prompt(5), mapped(HIGH)
    (output,) = generate(wide, [item], asked(steering, n=3, temperature=1.0, seed=3))
    assert len(output.outputs) == 3
    assert_maps(output.adaptvis_maps, expected(item, steering))


def test_maps_change_nothing_else(wide: Any) -> None:
    """Tokens, reports, steps and the tokens scheduled in them."""
    items = [prompt(i, TEXT) for i in range(len(ALL))]
    found = []
    for steerings in (ALL, [unmapped(s) for s in ALL]):
        assert wide.reset_prefix_cache()
        with counted_steps(wide) as steps:
            outputs = generate(wide, items, [asked(s) for s in steerings])
        counts = [sorted(step.values()) for step in steps]
        found.append((counts, [(tokens(o), o.adaptvis) for o in outputs]))
    assert found[0] == found[1]
