"""One engine, many kinds of requests: cost, bystanders, chunks, prefix cache, sampling."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints.images import make_image
from support.engine import (
    BLOCK,
    counted_steps,
    first_logprobs,
    generate,
    prompt,
    runner,
    sampling,
    scheduler,
    tokens,
)
from support.plain_engine import bystander_results

from adaptvis_vllm import AdaptVis, Candidates, Off, ScalingVis, SteeringParams

LOW, HIGH = AdaptVis(0.3, 3.0, 1.0), AdaptVis(0.3, 3.0, 0.0)  # always low, always high
STEERINGS = (None, ScalingVis(0.5), ScalingVis(3.0), LOW, HIGH, AdaptVis(0.5, 2.0, 0.4))


@pytest.fixture(autouse=True)
def _cold_cache(engine: Any) -> Iterator[None]:
    """Every test starts without cached blocks and ends without running requests."""
    assert engine.reset_prefix_cache()
    yield
    assert not engine.llm_engine.has_unfinished_requests()
    steering = runner(engine).adaptvis
    assert steering.plan is steering.sampling is None
    # What is finished is forgotten in the next step at the latest.
    assert set(steering.held.requests) <= scheduler(engine).finished_req_ids


def isolated(engine: Any, item: Any, params: Any) -> Any:
    """The same request alone, on a cold cache."""
    assert engine.reset_prefix_cache()
    (output,) = generate(engine, [item], params)
    assert engine.reset_prefix_cache()
    return output


def assert_same(output: Any, other: Any) -> None:
    assert tokens(output) == tokens(other)
    assert output.adaptvis == pytest.approx(other.adaptvis, abs=1e-5)


# -- cost -----------------------------------------------------------------------------


def test_steering_costs_no_step_and_no_token(engine: Any) -> None:
    """Steps with their scheduled tokens are a plain batch's; vision passes unchanged. Two rows
    are added for each adaptive request, once."""
    vision = Counter()
    tower = runner(engine).model.vision_tower
    handle = tower.register_forward_hook(lambda *_: vision.update(["passes"]))

    steering, side_rows = runner(engine).adaptvis, []
    copied = steering.before_forward
    steering.before_forward = lambda *args: (side_rows.append(steering.extra_rows), copied(*args))

    def cost(steerings: list[SteeringParams | None]) -> tuple[list[int], int, int]:
        assert engine.reset_prefix_cache()
        engine.llm_engine.reset_mm_cache()
        engine.llm_engine.reset_encoder_cache()
        vision.clear()
        side_rows.clear()
        params = [sampling(s, ignore_eos=True) for s in steerings]
        with counted_steps(engine) as steps:
            generate(engine, [prompt(i) for i in range(len(params))], params)
        return [sum(step.values()) for step in steps], vision["passes"], sum(side_rows)

    try:
        steps, passes, rows = cost([None] * 6)
        assert passes > 0
        assert rows == 0
        assert cost([ScalingVis(2.0)] * 6) == (steps, passes, 0)
        assert cost([LOW] * 6) == (steps, passes, 12)
        assert cost([LOW, None, HIGH, ScalingVis(2.0), Off(), LOW]) == (steps, passes, 6)
    finally:
        handle.remove()
        del steering.before_forward


def test_text_only_and_off_cost_nothing(engine: Any) -> None:
    with counted_steps(engine) as steps:
        outputs = generate(engine, [prompt(None)] * 2, [sampling(LOW), sampling(Off())])
    reports = [output.adaptvis for output in outputs]
    assert [r["reason"] for r in reports] == ["no image", "mode off"]
    assert not any(r["steered"] for r in reports)
    assert len(steps) == 8


def test_two_candidates_have_room_everywhere(engine: Any) -> None:
    """As many as adaptive steering has side rows."""
    (found,) = generate(engine, [prompt(0)], sampling(Candidates((0.3, 3.0))))
    assert [c["alpha"] for c in found.adaptvis["candidates"]] == [0.3, 3.0]
    with pytest.raises(ValueError, match="adaptvis_candidates must be 1 to 2 alphas, not 3"):
        generate(engine, [prompt(0)], sampling(Candidates((0.3, 1.0, 3.0))))


# -- bystanders -----------------------------------------------------------------------


def test_bystanders_see_an_engine_without_the_plugin(
    engine: Any, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plain.pickle"
    program = Path(__file__).parents[1] / "support" / "plain_engine.py"
    done = subprocess.run(
        [sys.executable, "-P", program, model, out],
        env={**os.environ, "VLLM_PLUGINS": "", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    plain = pickle.loads(out.read_bytes())
    assert bystander_results(engine, mixed=False) == plain
    for ours, theirs in zip(bystander_results(engine, mixed=True), plain, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        for (_, mine), (_, other) in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, abs=2e-5)  # another batch, another rounding


def test_a_step_without_steered_rows_calls_nothing_of_ours(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the attribute test: no placing, no recomputation, no confidence, no report."""
    from adaptvis_vllm.kernels.cpu import build as cpu

    from adaptvis_vllm.engine import place
    from adaptvis_vllm.engine.steps import Steering

    calls: Counter[str] = Counter()

    def count(name: str, original: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        return counted

    for owner, names in (
        (Steering, ("locate", "_upload", "copy_rows", "before_forward", "logits", "_choose")),
        (place, ("rows", "sides")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, count(name, getattr(owner, name)))
    monkeypatch.setattr(cpu, "steer_rows", count("recompute", cpu.steer_rows))
    generate(engine, [prompt(0), prompt(None)], sampling())
    assert not calls
    generate(engine, [prompt(0)], sampling(ScalingVis(2.0), max_tokens=20, ignore_eos=True))
    layers = runner(engine).adaptvis.num_layers
    assert calls["recompute"] == layers  # one step of twenty
    assert calls["locate"] == calls["rows"] == 1
    assert not calls["sides"]
    assert not calls["logits"]
    calls.clear()
    generate(engine, [prompt(0)], sampling(LOW, max_tokens=20, ignore_eos=True))
    assert calls["recompute"] == layers
    assert calls["locate"] == calls["rows"] == calls["sides"] == calls["logits"] == 1


def test_rows_without_a_compiler(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch, with the same answers, after one warning."""
    from adaptvis_vllm.engine.attention import cpu

    prompts = [prompt(0), prompt(1)]
    expected = generate(engine, prompts, sampling(LOW))
    monkeypatch.setattr(cpu.kernel, "problem", lambda: "no C++ compiler is in PATH")
    monkeypatch.setattr(cpu.kernel, "steer_rows", None)
    cpu.compiled.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="in torch, slowly: no C\\+\\+ compiler") as seen:
            found = generate(engine, prompts, sampling(LOW))
    finally:
        cpu.compiled.cache_clear()
    assert len([w for w in seen if w.category is RuntimeWarning]) == 1
    for one, wanted in zip(found, expected, strict=True):
        assert_same(one, wanted)


# -- chunks ---------------------------------------------------------------------------


@pytest.mark.parametrize("steering", [ScalingVis(3.0), LOW, HIGH], ids=["scaling", "low", "high"])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_chunk_ends_around_the_last_prompt_position(
    engine: Any, steering: SteeringParams, offset: int
) -> None:
    """Chunks of a size that ends one token before, at, and after position n."""
    item = prompt(0, "The cat sat on the mat and the dog sat under the table. " * 3)
    expected = isolated(engine, item, sampling(steering))
    length = len(expected.prompt_token_ids)
    sched = scheduler(engine)
    budget = sched.max_num_scheduled_tokens
    for size in {length // 2 + offset, length - 1 + offset, length + offset}:
        sched.max_num_scheduled_tokens = size
        try:
            with counted_steps(engine) as steps:
                output = isolated(engine, item, sampling(steering))
        finally:
            sched.max_num_scheduled_tokens = budget
        assert_same(output, expected)
        counts = [count for step in steps for count in step.values()]
        assert counts[0] == min(size, length)
        assert sum(counts) == length + len(output.outputs[0].token_ids) - 1


# -- prefix cache ---------------------------------------------------------------------


def lengths(llm: Any, image: int, wanted: int) -> str:
    """A question that makes the prompt exactly `wanted` tokens long."""
    tokenizer = llm.get_tokenizer()
    for words in range(200):
        text = "cat " * words
        item = prompt(image, text)
        ids = tokenizer.encode(item["prompt"])
        if len(ids) + 15 == wanted:  # one placeholder becomes 16 positions
            return text
    raise AssertionError(f"no prompt of {wanted} tokens")


def test_five_alphas_share_the_image(engine: Any) -> None:
    """The image's blocks are computed once; each answer equals its own on a cold cache."""
    text = "The cat sat on the mat and the dog sat under the table. " * 5
    item = prompt(1, text)
    steerings = [ScalingVis(a) for a in (0.3, 0.5, 1.5, 2.0, 3.0)]
    expected = [isolated(engine, item, sampling(s)) for s in steerings]
    length = len(expected[0].prompt_token_ids)
    shared = (length - 1) // BLOCK * BLOCK
    assert shared >= 2 * BLOCK
    with counted_steps(engine) as steps:
        outputs = [generate(engine, [item], sampling(s, max_tokens=1))[0] for s in steerings]
    assert [sum(step.values()) for step in steps] == [length] + [length - shared] * 4
    for output, other in zip(outputs, expected, strict=True):
        assert tokens(output)[0] == tokens(other)[0][:1]


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("writer", STEERINGS[1:], ids=lambda s: s.key())
def test_no_steered_block_is_read_by_others(
    engine: Any, writer: SteeringParams, extra: int
) -> None:
    """After a steered prompt that ends at a block's end, or one later, everybody else."""
    item = prompt(2, lengths(engine, 2, 2 * BLOCK + extra))
    longer = {**item, "prompt": item["prompt"] + " cat dog cat dog" * 6}
    for reader in (longer, item):
        for steering in STEERINGS:
            params = sampling(steering, logprobs=5, max_tokens=3)
            other = isolated(engine, reader, params)
            (written,) = generate(engine, [item], sampling(writer))
            (output,) = generate(engine, [reader], params)
            shared = zip(written.prompt_token_ids, output.prompt_token_ids, strict=False)
            assert all(mine == theirs for mine, theirs in shared)
            assert_same(output, other)
            assert first_logprobs(output) == pytest.approx(first_logprobs(other), abs=1e-4)


@pytest.mark.parametrize("steering", [None, ScalingVis(3.0), LOW], ids=["plain", "scaling", "low"])
def test_conversation_whose_first_turn_was_steered(
    engine: Any, steering: SteeringParams | None
) -> None:
    """The second turn's prompt holds the first one's last position, which it must not steer."""
    first = prompt(3, "The cat sat on the mat and the dog sat under the table. " * 3)
    (turn,) = generate(engine, [first], sampling(HIGH, max_tokens=40, ignore_eos=True))
    second = {
        "prompt": first["prompt"] + turn.outputs[0].text + "USER: And now? ASSISTANT:",
        "multi_modal_data": first["multi_modal_data"],
    }
    (output,) = generate(engine, [second], sampling(steering, logprobs=5))
    other = isolated(engine, second, sampling(steering, logprobs=5))
    assert_same(output, other)
    assert first_logprobs(output) == pytest.approx(first_logprobs(other), abs=1e-4)


def test_one_prompt_token_left_by_the_prefix_cache(engine: Any) -> None:
    """The last prompt token arrives alone, looking like a decode."""
    item = prompt(4, lengths(engine, 4, 2 * BLOCK + 1))
    expected = [isolated(engine, item, sampling(s)) for s in STEERINGS]
    generate(engine, [item], sampling())
    with counted_steps(engine) as steps:
        outputs = [generate(engine, [item], sampling(s))[0] for s in STEERINGS]
    for output, other in zip(outputs, expected, strict=True):
        assert_same(output, other)
    assert max(count for step in steps for count in step.values()) == 1


# -- sampling -------------------------------------------------------------------------

SAMPLINGS: dict[str, dict[str, Any]] = {
    "max_tokens=1": {"max_tokens": 1},
    "n": {"n": 3, "temperature": 1.0, "seed": 11},
    "seed": {"temperature": 1.0, "seed": 5},
    "top_p": {"temperature": 0.8, "seed": 5, "top_p": 0.7, "top_k": 20, "min_p": 0.01},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.4},
    "bias": {"logit_bias": {100: 20.0, 101: 19.5}},
    "bad_words": {"bad_words": ["cat", "dog"]},
    "min_tokens": {"min_tokens": 6},
    "logprobs": {"logprobs": 7},
    "prompt_logprobs": {"prompt_logprobs": 3},
    "choice": {"choice": ["left", "right", "on", "under"]},
    "json": {
        "json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        "max_tokens": 24,
    },
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_adaptive_equals_steered_from_the_start(engine: Any, name: str) -> None:
    """An adaptive request gives what ScalingVis gives with the alpha that it chose.

    So the choice leaves no trace in seeds, penalties, grammars or logprobs; ScalingVis has
    none. In a batch with others, and alone.
    """
    from vllm.sampling_params import StructuredOutputsParams

    options = dict(SAMPLINGS[name])
    for kind in ("choice", "json"):
        if kind in options:
            grammar = StructuredOutputsParams(**{kind: options.pop(kind)})
            options["structured_outputs"] = grammar
    steerings = [LOW, ScalingVis(0.3), HIGH, ScalingVis(3.0)]
    params = [sampling(s, **options) for s in steerings]
    low, low_given, high, high_given = generate(engine, [prompt(0)] * 4, params)
    assert tokens(low) == tokens(low_given)
    assert tokens(high) == tokens(high_given)
    assert tokens(isolated(engine, prompt(0), params[0])) == tokens(low)
    if name == "logprobs":
        assert first_logprobs(high) == pytest.approx(first_logprobs(high_given), abs=1e-4)
        assert len(high.outputs[0].logprobs) == len(high.outputs[0].token_ids)
    if name == "prompt_logprobs":
        assert len(low.prompt_logprobs) == len(low.prompt_token_ids)
        for mine, other in zip(low.prompt_logprobs[1:], low_given.prompt_logprobs[1:], strict=True):
            ours = {k: v.logprob for k, v in mine.items()}
            theirs = {k: v.logprob for k, v in other.items()}
            assert ours == pytest.approx(theirs, abs=1e-4)
    if name == "choice":
        assert low.outputs[0].text in ("left", "right", "on", "under")


def test_confidence_is_of_the_raw_logits(engine: Any) -> None:
    """Bias, penalties, grammar and temperature do not change it."""
    from vllm.sampling_params import StructuredOutputsParams

    variants: list[dict[str, Any]] = [
        {},
        {"logit_bias": {7: 50.0}},
        {"temperature": 2.0, "seed": 1},
        {"repetition_penalty": 2.0},
        {"structured_outputs": StructuredOutputsParams(choice=["left", "right"])},
        {"allowed_token_ids": [5, 6, 7]},
    ]
    params = [sampling(LOW, **options) for options in variants]
    outputs = generate(engine, [prompt(0)] * len(params), params)
    found = [output.adaptvis["confidence"] for output in outputs]
    assert found == pytest.approx([found[0]] * len(found), abs=1e-6)
    plain = isolated(engine, prompt(0), sampling(logprobs=1))
    import math

    assert found[0] == pytest.approx(math.exp(max(first_logprobs(plain).values())), abs=1e-5)


def test_stop_string(engine: Any) -> None:
    answer = isolated(engine, prompt(0), sampling(HIGH, ignore_eos=True)).outputs[0].text
    stop = answer[3:6]
    (output,) = generate(engine, [prompt(0)], sampling(HIGH, stop=[stop]))
    assert output.outputs[0].text == answer[: answer.index(stop)]
    assert output.outputs[0].finish_reason == "stop"
    assert output.adaptvis["steered"]


def test_chat_equals_generate(engine: Any) -> None:
    """`LLM.chat` does not go through `LLM.generate`, but is steered alike."""
    content = [
        {"type": "image_pil", "image_pil": make_image(0)},
        {"type": "text", "text": "Where is the red cat?"},
    ]
    messages = [{"role": "user", "content": content}]
    for steering in STEERINGS:
        (chat,) = engine.chat([messages], sampling(steering), use_tqdm=False)
        text = chat.prompt.removeprefix("<s>")  # the tokenizer adds it again
        (raw,) = generate(engine, [{**prompt(0), "prompt": text}], sampling(steering))
        assert chat.prompt_token_ids == raw.prompt_token_ids
        assert_same(chat, raw)
