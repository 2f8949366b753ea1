"""Candidates: the best first token under each alpha, from rows beside an unsteered request."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.test_lifecycle import TEXT, aligned, drive, preempt_all
from support.calibration_cases import questions, write_questions
from support.engine import (
    BLOCK,
    close,
    counted_steps,
    flat,
    generate,
    make_llm,
    prompt,
    runner,
    sampling,
    scheduler,
    side_rows_seen,
    tokens,
)
from vllm.sampling_params import StructuredOutputsParams

from adaptvis_vllm import AdaptVis, Candidates, Off, ScalingVis, SteeringParams, cli
from adaptvis_vllm.engine import plan, steps
from adaptvis_vllm.evaluation.calibration import command
from adaptvis_vllm.evaluation.calibration import sweep as sweep_module
from adaptvis_vllm.evaluation.calibration import transfer as transfer_module
from adaptvis_vllm.evaluation.calibration.first_tokens import has_room
from adaptvis_vllm.evaluation.calibration.selection import calibrate
from adaptvis_vllm.evaluation.calibration.sweep import sweep
from adaptvis_vllm.evaluation.calibration.transfer import transfer
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.datasets.scoring import contains
from adaptvis_vllm.steering.fields import CONFIDENCES

ROOM = 9
ALPHAS = (0.125, 0.25, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 4.0)
FIVE = (3.0, 0.3, 1.0, 0.5, 2.0)  # in no order
LOW = AdaptVis(0.3, 3.0, 1.0)


@pytest.fixture(scope="module")
def roomy(model: Path) -> Iterator[Any]:
    """An engine with room for nine candidates a request, and steps of 64 tokens."""
    llm = make_llm(
        model,
        max_num_batched_tokens=64,
        additional_config={"adaptvis": {"max_candidates": ROOM}},
    )
    yield llm
    close(llm)


@pytest.fixture(autouse=True)
def _cold_cache(roomy: Any) -> Iterator[None]:
    assert roomy.reset_prefix_cache()
    yield
    steering = runner(roomy).adaptvis
    assert steering.plan is steering.sampling is steering.choosing is None
    assert set(steering.held.requests) <= scheduler(roomy).finished_req_ids


def alone(engine: Any, item: Any, params: Any) -> Any:
    assert engine.reset_prefix_cache()
    (output,) = generate(engine, [item], params)
    assert engine.reset_prefix_cache()
    return output


def separately(engine: Any, item: Any, alphas: tuple[float, ...], **steering: Any) -> list[Any]:
    """What requests of one token, each steered with one alpha, say."""
    out = []
    for alpha in alphas:
        params = sampling(ScalingVis(alpha, **steering), max_tokens=1, logprobs=1)
        answer = alone(engine, item, params).outputs[0]
        token = answer.token_ids[0]
        out.append(
            {
                "alpha": alpha,
                "token_id": token,
                "token": answer.text,
                "probability": pytest.approx(math.exp(answer.logprobs[0][token].logprob), abs=1e-5),
                "stop": answer.finish_reason == "stop",
            }
        )
    return out


def confidences(engine: Any, item: Any) -> dict[str, Any]:
    """Of the unsteered first token, by adaptive requests."""
    out = {}
    for kind in CONFIDENCES:
        steering = AdaptVis(1, 1, 0.5, confidence=kind)
        found = alone(engine, item, sampling(steering, max_tokens=1)).adaptvis["confidence"]
        out[kind] = pytest.approx(found, abs=1e-5)
    return out


@pytest.mark.parametrize("alphas", [(2.0,), (0.3, 3.0), FIVE, ALPHAS], ids=len)
def test_candidates_are_what_separate_requests_say(roomy: Any, alphas: tuple[float, ...]) -> None:
    """In one batch with steered and plain requests, which keep their answers and reports."""
    items = [prompt(i, TEXT if i % 2 else "Where is the red cat?") for i in range(6)]
    kinds = (*CONFIDENCES, *CONFIDENCES)
    steerings = [Candidates(alphas, confidence=kind) for kind in kinds]
    others = [None, LOW, ScalingVis(3.0), AdaptVis(0.3, 3.0, 0.0), Off(), AdaptVis(0.5, 2.0, 0.4)]
    expected = [alone(roomy, i, sampling(s)) for i, s in zip(items, others, strict=True)]
    plain = [alone(roomy, item, sampling()) for item in items]
    both = [pair for item in items for pair in (item, item)]
    params = [p for pair in zip(steerings, others, strict=True) for p in map(sampling, pair)]
    found = generate(roomy, both, params)
    for number, item in enumerate(items):
        mine, other = found[2 * number], found[2 * number + 1]
        assert tokens(mine) == tokens(plain[number])
        assert tokens(other) == tokens(expected[number])
        assert flat(other.adaptvis) == pytest.approx(flat(expected[number].adaptvis), abs=1e-5)
        measures = confidences(roomy, item)
        assert mine.adaptvis == {
            "mode": "candidates",
            "confidence": measures[kinds[number]],
            "alpha": None,
            "steered": False,
            "reason": "mode candidates",
            "candidates": separately(roomy, item, alphas),
            "confidences": measures,
        }
    if len(alphas) > 1:
        firsts = [[c["token_id"] for c in o.adaptvis["candidates"]] for o in found[::2]]
        assert any(len(set(one)) > 1 for one in firsts), "alpha changes no token: no test"


@pytest.mark.parametrize(("layers", "span"), [("1-2", "embeddings"), (None, "interval")])
def test_layers_and_span(roomy: Any, layers: str | None, span: str) -> None:
    two = {
        "prompt": "USER: <image>\nThe first. <image>\nThe second one. Which? ASSISTANT:",
        "multi_modal_data": {"image": [prompt(i)["multi_modal_data"]["image"] for i in (0, 1)]},
    }
    steering = Candidates(FIVE, layers=layers, span=span)
    found = alone(roomy, two, sampling(steering)).adaptvis["candidates"]
    assert found == separately(roomy, two, FIVE, layers=layers, span=span)
    assert found != separately(roomy, two, FIVE)


def test_a_prompt_that_ends_in_the_picture(roomy: Any) -> None:
    item = {**prompt(3), "prompt": "USER: what is this? <image>"}
    found = alone(roomy, item, sampling(Candidates(FIVE))).adaptvis["candidates"]
    assert found == separately(roomy, item, FIVE)


# -- cost -------------------------------------------------------------------------------


def test_one_step_with_as_many_tokens_as_without(
    roomy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K rows beside them, computed in pairs by one call a layer; nothing enters the caches."""
    from adaptvis_vllm.engine.attention import cpu

    steering, compute = runner(roomy).adaptvis, cpu.kernel.steer_rows
    calls: Counter[str] = Counter()

    def steer_rows(*args: Any, **options: Any) -> None:
        calls["kernel"] += 1
        calls["pairs"] += len(args[14])
        compute(*args, **options)

    monkeypatch.setattr(cpu.kernel, "steer_rows", steer_rows)
    item = prompt(0)
    with counted_steps(roomy) as plain, side_rows_seen(steering) as none:
        generate(roomy, [item], sampling(max_tokens=4, ignore_eos=True))
    assert roomy.reset_prefix_cache()
    assert not calls
    assert not none
    monkeypatch.setattr(type(steering), "commit", None)  # not called
    with counted_steps(roomy) as mine, side_rows_seen(steering) as seen:
        generate(roomy, [item], sampling(Candidates(FIVE), max_tokens=4, ignore_eos=True))
    assert [sum(s.values()) for s in mine] == [sum(s.values()) for s in plain]
    layers = steering.num_layers
    assert calls == {"kernel": layers, "pairs": 3 * layers}
    assert [rows for _, rows in seen] == [5]


def test_a_full_step_has_room(roomy: Any) -> None:
    """Eight requests of nine candidates beside 64 tokens, which stay the user's."""
    sched = scheduler(roomy)
    assert sched.max_num_scheduled_tokens == 64
    assert sched.scheduler_config.max_num_batched_tokens == 64
    assert runner(roomy).max_num_tokens == 64 + ROOM * 8
    items = [aligned(roomy, i, 2 * BLOCK + 8) for i in range(8)]
    params = sampling(Candidates(ALPHAS), max_tokens=2)
    expected = [alone(roomy, item, params).adaptvis for item in items]
    for item in items:  # then eight tokens are left of each prompt
        generate(roomy, [item], sampling(max_tokens=1))
    with side_rows_seen(runner(roomy).adaptvis) as seen:
        found = generate(roomy, items, params)
    assert seen == [(64, ROOM * 8)]
    for one, other in zip(found, expected, strict=True):
        assert flat(one.adaptvis) == pytest.approx(flat(other), abs=1e-5)


def test_logits_of_many_candidates_are_computed_in_parts(
    roomy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, params = [prompt(0), prompt(1)], [sampling(LOW), sampling(Candidates(ALPHAS))]
    expected = generate(roomy, items, params)
    assert roomy.reset_prefix_cache()
    for module in (plan, steps):
        monkeypatch.setattr(module, "HEAD_ROWS", 4)
    steering, heads = runner(roomy).adaptvis, []
    original = steering.logits

    def logits(hidden: torch.Tensor, head: Any) -> Any:
        return original(hidden, lambda rows: (heads.append(len(rows)), head(rows))[1])

    monkeypatch.setattr(steering, "logits", logits)
    found = generate(roomy, items, params)
    assert max(heads) == 2 + 2 + 4
    assert heads.count(4) == 1
    for one, other in zip(found, expected, strict=True):
        assert tokens(one) == tokens(other)
        assert flat(one.adaptvis) == pytest.approx(flat(other.adaptvis), abs=1e-5)


# -- prefix cache, chunks, sampling -----------------------------------------------------


def test_its_blocks_are_everybodys(roomy: Any) -> None:
    """The block that ends at the last prompt position is shared as an unsteered request's is."""
    item = aligned(roomy, 1, 2 * BLOCK)
    longer = {**item, "prompt": item["prompt"] + " cat dog cat dog" * 6}
    for steering, shared in ((None, 2 * BLOCK), (LOW, BLOCK), (Candidates(FIVE), 2 * BLOCK)):
        expected = alone(roomy, longer, sampling(logprobs=3))
        generate(roomy, [item], sampling(steering))
        (found,) = generate(roomy, [longer], sampling(logprobs=3))
        assert found.num_cached_tokens == shared
        assert tokens(found) == tokens(expected)
        assert roomy.reset_prefix_cache()


def test_the_prefix_cache_leaves_the_last_position_alone(roomy: Any) -> None:
    item = aligned(roomy, 1, 2 * BLOCK + 1)
    params = sampling(Candidates(FIVE))
    expected = alone(roomy, item, params)
    generate(roomy, [item], sampling())
    with counted_steps(roomy) as counted:
        (found,) = generate(roomy, [item], params)
    assert max(count for step in counted for count in step.values()) == 1
    assert tokens(found) == tokens(expected)
    assert flat(found.adaptvis) == pytest.approx(flat(expected.adaptvis), abs=1e-5)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_chunks(roomy: Any, offset: int) -> None:
    """That end one token before, at, and after the last prompt position."""
    item, params = prompt(0, TEXT), sampling(Candidates(FIVE))
    expected = alone(roomy, item, params)
    length = len(expected.prompt_token_ids)
    sched = scheduler(roomy)
    for size in (length // 2 + offset, length - 1 + offset):
        budget, sched.max_num_scheduled_tokens = sched.max_num_scheduled_tokens, size
        try:
            found = alone(roomy, item, params)
        finally:
            sched.max_num_scheduled_tokens = budget
        assert tokens(found) == tokens(expected)
        assert flat(found.adaptvis) == pytest.approx(flat(expected.adaptvis), abs=1e-5)


def test_sampling_changes_no_candidate(roomy: Any) -> None:
    """They are of the raw logits: whatever the grammar, penalties, biases and choices."""
    variants: list[dict[str, Any]] = [
        {},
        {"n": 3, "temperature": 1.0, "seed": 11},
        {"logit_bias": {7: 50.0}},
        {"repetition_penalty": 2.0},
        {"structured_outputs": StructuredOutputsParams(choice=["left", "right"])},
        {"allowed_token_ids": [5, 6, 7]},
        {"prompt_logprobs": 2},
    ]
    given = [sampling(Candidates(FIVE), **options) for options in variants]
    plain = [sampling(**options) for options in variants]
    item = prompt(0)
    found = generate(roomy, [item] * len(given), given)
    for one, params in zip(found, plain, strict=True):
        assert flat(one.adaptvis) == pytest.approx(flat(found[0].adaptvis), abs=1e-5)
        assert tokens(one) == tokens(alone(roomy, item, params))
    assert len(found[1].outputs) == 3
    assert found[4].outputs[0].text in ("left", "right")


def test_an_end_and_a_stop_string(roomy: Any) -> None:
    """A candidate reads as the answer that it would be."""
    item = prompt(0)
    first = separately(roomy, item, FIVE)
    token, text = first[0]["token_id"], first[0]["token"]
    assert text
    for options in ({"stop_token_ids": [token]}, {"stop": [text]}):
        found = alone(roomy, item, sampling(Candidates(FIVE), **options)).adaptvis["candidates"]
        params = sampling(ScalingVis(FIVE[0]), **options)
        answer = alone(roomy, item, params).outputs[0]
        assert (found[0]["token"], found[0]["stop"]) == (answer.text, True)
        assert answer.finish_reason == "stop"
        assert [c["token_id"] for c in found] == [c["token_id"] for c in first]
    options = {"detokenize": False}
    found = alone(roomy, item, sampling(Candidates(FIVE), **options)).adaptvis["candidates"]
    assert {c["token"] for c in found} == {None}


def test_no_image(roomy: Any) -> None:
    (found,) = generate(roomy, [prompt(None)], sampling(Candidates(FIVE)))
    assert found.adaptvis == {
        "mode": "candidates",
        "confidence": None,
        "alpha": None,
        "steered": False,
        "reason": "no image",
        "candidates": [],
        "confidences": None,
    }


# -- lifecycle --------------------------------------------------------------------------


@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
def test_preempted_and_aborted_at_every_step(roomy: Any, cold: bool) -> None:
    """In prefill, between the rows and the end, twice; an aborted neighbour takes nothing along."""
    items = [aligned(roomy, 1, 2 * BLOCK), prompt(0, TEXT), prompt(2, TEXT)]
    params = [sampling(Candidates(FIVE), max_tokens=6, ignore_eos=True) for _ in items]
    expected = [alone(roomy, item, p) for item, p in zip(items, params, strict=True)]
    steering, at, last = runner(roomy).adaptvis, 1, False
    while not last:
        assert roomy.reset_prefix_cache()
        last, rows = True, []

        def on_step(step: int, ids: list[str], at: int = at) -> None:
            nonlocal last
            if step in (at, at + 2):
                last = step == at + 2 and last
                preempt_all(roomy, cold)
            if step == at:
                last = False
                roomy.llm_engine.abort_request([ids[2]], internal=True)

        copied = steering.before_forward
        steering.before_forward = lambda *args, rows=rows, copied=copied: (
            rows.append(steering.extra_rows),
            copied(*args),
        )
        try:
            done = drive(roomy, items, params, on_step)
        finally:
            del steering.before_forward
        for number, other in enumerate(expected[:2]):
            assert tokens(done[number]) == tokens(other), (at, number)
            mine = flat(done[number].adaptvis)
            assert mine == pytest.approx(flat(other.adaptvis), abs=1e-5)
        assert sum(rows) in (10, 15)  # once each, whatever is computed again
        at += 1
    assert at > 6


# -- room -------------------------------------------------------------------------------


def test_more_than_there_is_room_for_is_refused(roomy: Any) -> None:
    """Before anything is queued, with the field, its range and the option."""
    message = (
        r"^adaptvis_candidates must be 1 to 9 alphas, not 10: more need an engine with "
        r"max_candidates of at least 10 \(--max-candidates, or in "
        r"additional_config\['adaptvis'\]\)$"
    )
    with pytest.raises(ValueError, match=message):
        generate(roomy, [prompt(0)] * 2, [sampling(), sampling(Candidates((*ALPHAS, 5.0)))])
    assert not roomy.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_candidates": 0}, "max_candidates must be a whole number from 1 to 64, not 0"),
        ({"max_candidates": 65}, "max_candidates must be a whole number from 1 to 64, not 65"),
        ({"max_candidates": "9"}, "max_candidates must be a whole number from 1 to 64, not '9'"),
        ({"max_candidates": True}, "max_candidates must be a whole number from 1 to 64, not True"),
        ({"candidates": [0]}, "candidates must be 1 to 64 different alphas"),
    ],
)
def test_an_engine_with_wrong_room_does_not_start(
    model: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"additional_config\['adaptvis'\]: {message}"):
        make_llm(model, additional_config={"adaptvis": values})


# -- sweeps -----------------------------------------------------------------------------

GRID = (0.25, 0.5, 1.0, 2.0, 4.0)


def test_a_sweep_of_one_token_is_one_request_a_question(
    roomy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figure by figure the table of separate requests; its cost is counted in rows."""
    asked = questions(12)
    with counted_steps(roomy) as counted:
        found = sweep(roomy, asked, contains, GRID, max_tokens=1, layers="0-2")
    assert len({name for step in counted for name in step}) == len(asked)
    assert found.plain_tokens == sum(sum(step.values()) for step in counted)
    assert found.all_tokens == found.plain_tokens + 4 * len(asked)
    monkeypatch.setattr(sweep_module, "has_room", lambda *_: False)
    assert roomy.reset_prefix_cache()
    other = sweep(roomy, asked, contains, GRID, max_tokens=1, layers="0-2")
    assert found.table.texts == other.table.texts
    assert len({tuple(row) for row in found.table.texts}) > 1
    assert (found.table.scores == other.table.scores).all()
    assert found.table.alphas.tolist() == other.table.alphas.tolist()
    for kind in CONFIDENCES:
        assert found.table.confidences[kind] == pytest.approx(
            other.table.confidences[kind], abs=1e-5
        )
    assert other.plain_tokens == found.plain_tokens
    assert other.all_tokens > found.all_tokens


def test_settings_are_tried_with_one_request_a_question(
    roomy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question without an image, which no alpha changes, among them."""
    asked = [*questions(10), Question(id="text", images=(), question="Where?", answer="e")]
    table = sweep(roomy, asked[:10], contains, GRID, max_tokens=1).table
    middle = float(np.median(table.confidences["margin"]))
    settings = [Off(), ScalingVis(4.0), AdaptVis(0.25, 2.0, middle, confidence="margin")]
    candidates = [replace(calibrate(table).candidates[0], params=params) for params in settings]
    options = {"max_tokens": 1, "chat": False, "progress": False}
    with counted_steps(roomy) as counted:
        found = transfer(roomy, asked, contains, candidates, **options)
    assert len({name for step in counted for name in step}) == len(asked)
    monkeypatch.setattr(transfer_module, "has_room", lambda *_: False)
    assert found == transfer(roomy, asked, contains, candidates, **options)
    with pytest.raises(ValueError, match="question text is not steered: no image"):
        sweep(roomy, asked[10:], contains, GRID, max_tokens=1)


def test_where_there_is_no_room_or_more_than_a_token(roomy: Any) -> None:
    assert has_room(roomy, (1.0, *(0.01 * i for i in range(1, 10))), 1)
    assert not has_room(roomy, (1.0, *(0.01 * i for i in range(1, 11))), 1)
    assert not has_room(roomy, (0.5, 1.0), 2)
    assert not has_room(roomy, (1.0,), 1)


def test_calibrate_makes_room(roomy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_questions(tmp_path / "data", "validation", 8)
    write_questions(tmp_path / "data", "plain", 4, first=16)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        command, "make_llm", lambda args, **overrides: (seen.append(overrides), roomy)[1]
    )
    words = ["--data", str(tmp_path / "data"), "--model", "tiny", "-o", str(tmp_path / "out")]
    words += ["--alphas", "0.25,0.5,1,2,4", "--max-tokens"]
    given = ["--additional-config", '{"other": 1, "adaptvis": {"layers": "0", "mode": "off"}}']
    assert cli.main(["calibrate", *words, "1", *given]) == 0
    content = json.loads((tmp_path / "out/calibration.json").read_text())
    plain = content["tokens"]["plain"]
    assert content["tokens"] == {
        "plain": plain,
        "all": plain + 4 * 8,
        "ratio": pytest.approx(1 + 32 / plain),
    }
    assert cli.main(["calibrate", *words, "2"]) == 0
    room, none = (overrides.get("additional_config") for overrides in seen)
    held = {"layers": "0", "mode": "off", "max_candidates": 4}
    assert room == {"other": 1, "adaptvis": held}
    assert none is None


def test_params() -> None:
    assert Candidates([0.5, 2]) == SteeringParams(candidates="0.5, 2") == Candidates((0.5, 2.0))
    assert not Candidates([0.5]).steers
