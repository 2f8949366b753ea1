"""Heads, pictures, options and generated rows: what they cost, whom they touch, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints.images import make_image
from support.engine import (
    BLOCK,
    close,
    counted_steps,
    first_logprobs,
    generate,
    make_llm,
    prompt,
    sampling,
    tokens,
)

from adaptvis_vllm import AdaptVis, Candidates, ScalingVis, SteeringParams

GENERATED = ScalingVis(3.0, rows="generated")
TWO = {
    "prompt": "USER: <image>\nThe first. <image>\nThe second. Which is brighter? ASSISTANT:",
    "multi_modal_data": {"image": [make_image(3), make_image(11)]},
}


def asked(llm: Any, item: Any, steering: SteeringParams | None, **options: Any) -> Any:
    assert llm.reset_prefix_cache()
    return generate(llm, [item], sampling(steering, logprobs=5, **options))[0]


@pytest.mark.parametrize("layers", ["1-2", "0,3", None])
@pytest.mark.parametrize("rule", ["multiply", "pai"])
def test_all_heads_of_layers_are_these_layers(engine: Any, layers: str | None, rule: str) -> None:
    """Bit for bit, given or chosen; some of the heads are something else."""
    every = ",".join(f"{part}.*" for part in (layers or "0-3").split(","))
    spelt = ",".join(f"{part}.0-3" for part in (layers or "0-3").split(","))
    some = ",".join(f"{part}.0-2" for part in (layers or "0-3").split(","))
    for make in (
        lambda **where: ScalingVis(3.0, rule=rule, **where),
        lambda **where: AdaptVis(0.3, 3.0, 0.0, rule=rule, **where),
    ):
        plain = asked(engine, prompt(1), make(layers=layers))
        for heads in (every, spelt):
            output = asked(engine, prompt(1), make(heads=heads))
            assert tokens(output) == tokens(plain)
            assert first_logprobs(output) == first_logprobs(plain)
        other = asked(engine, prompt(1), make(heads=some))
        assert first_logprobs(other) != first_logprobs(plain)


def test_all_pictures_are_these_pictures(engine: Any) -> None:
    plain = asked(engine, TWO, ScalingVis(3.0))
    found = {i: asked(engine, TWO, ScalingVis(3.0, images=i)) for i in ("0", "1", "0-1")}
    assert first_logprobs(found["0-1"]) == first_logprobs(plain)
    assert len({str(first_logprobs(output)) for output in found.values()}) == 3


def test_boxes_of_a_picture(engine: Any) -> None:
    """The whole picture is what no box gives, bit for bit; parts of it are something else."""
    item = prompt(3)
    width, height = item["multi_modal_data"]["image"].size
    whole = (0, 0, width, height)
    halves = (0, 0, width / 2, height, width / 2, 0, width, height)
    for steering in (ScalingVis(3.0), AdaptVis(0.3, 3.0, 0.0)):
        plain = asked(engine, item, steering)
        for boxes in (whole, halves, (0, 0, 9999, 9999)):
            output = asked(engine, item, replace(steering, boxes=boxes))
            assert first_logprobs(output) == first_logprobs(plain)
        part = asked(engine, item, replace(steering, boxes=halves[:4]))
        assert first_logprobs(part) != first_logprobs(plain)
    one, other = (asked(engine, TWO, ScalingVis(3.0, images=i)) for i in "01")
    size = TWO["multi_modal_data"]["image"][1].size
    mine = asked(engine, TWO, ScalingVis(3.0, images="1", boxes=(0, 0, *size)))
    assert first_logprobs(mine) == first_logprobs(other) != first_logprobs(one)
    (without,) = generate(engine, [prompt(None)], sampling(ScalingVis(3.0, boxes=whole)))
    assert without.adaptvis["reason"] == "no image"


def test_generated_rows_cost_no_step_and_no_token(engine: Any) -> None:
    options = {"max_tokens": 8, "ignore_eos": True}
    steps = {}
    for steering in (None, GENERATED, AdaptVis(0.3, 3.0, 0.4, rows="generated")):
        with counted_steps(engine) as seen:
            output = asked(engine, prompt(1), steering, **options)
        steps[output.adaptvis and output.adaptvis["mode"]] = [sum(s.values()) for s in seen]
    assert steps[None] == steps["scaling"] == steps["adaptive"]


def test_generated_rows_change_what_follows_the_first_token(engine: Any) -> None:
    options = {"max_tokens": 12, "ignore_eos": True}
    last = asked(engine, prompt(1), ScalingVis(3.0), **options)
    every = asked(engine, prompt(1), GENERATED, **options)
    assert first_logprobs(last) == first_logprobs(every)
    assert last.outputs[0].logprobs[1:] != every.outputs[0].logprobs[1:]


def test_bystanders_keep_their_tokens(engine: Any) -> None:
    options = {"max_tokens": 12, "ignore_eos": True}
    items = [prompt(i, "Where is the red cat? " * (1 + i)) for i in range(6)]
    steerings = [None, ScalingVis(0.3), None, AdaptVis(0.3, 3.0, 0.4), None, ScalingVis(2.0)]
    alone = [asked(engine, item, s, **options) for item, s in zip(items, steerings, strict=True)]
    for some in ((1,), (1, 3, 5), (0, 1, 2, 3, 4, 5)):
        mixed = [GENERATED if i in some else s for i, s in enumerate(steerings)]
        assert engine.reset_prefix_cache()
        outputs = generate(engine, items, [sampling(s, **options) for s in mixed])
        for i, output in enumerate(outputs):
            if i not in some:
                assert tokens(output) == tokens(alone[i])


def test_nobody_reads_blocks_of_generated_rows(engine: Any) -> None:
    """A conversation goes on behind an answer whose rows were steered: it is computed anew."""
    text = "cat dog " * BLOCK
    (first,) = generate(engine, [prompt(2, text)], sampling(GENERATED, max_tokens=2 * BLOCK))
    said = first.outputs[0].text
    following = {**prompt(2, text), "prompt": prompt(2, text)["prompt"] + said + " USER: And now?"}
    (output,) = generate(engine, [following], sampling(logprobs=5))
    cached = output.num_cached_tokens
    alone = asked(engine, following, None)
    assert cached <= len(first.prompt_token_ids)
    assert tokens(output) == tokens(alone)
    assert first_logprobs(output) == pytest.approx(first_logprobs(alone), abs=1e-4)


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (ScalingVis(2, heads="4.0"), "adaptvis_heads names layer 4, but the model has layers 0-3"),
        (ScalingVis(2, heads="1.2-4"), "adaptvis_heads names head 4 of layer 1, .* heads 0-3"),
        (ScalingVis(2, images="0,2"), "adaptvis_images is '0,2', but the prompt has images 0-1"),
        (
            ScalingVis(2, boxes=(0, 0, 9, 9)),
            "adaptvis_boxes are of one picture, .*images must name",
        ),
        (
            ScalingVis(2, boxes=(900, 900, 901, 901), images="0"),
            r"adaptvis_boxes hold the centre of no image position of the picture, .* \d+ x \d+ pix",
        ),
        (
            AdaptVis(1, 2, 0.5, options=("on", "on top")),
            "adaptvis_options: 'on' begins with no token of its own among",
        ),
        (Candidates([1], options=("choices",)), "adaptvis_options is 'choices', which stands for"),
    ],
)
def test_what_the_model_or_the_prompt_lacks(
    engine: Any, steering: SteeringParams, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        asked(engine, TWO, steering)
    (output,) = generate(engine, [TWO], sampling())  # the engine goes on
    assert output.finished


def test_boxes_where_nobody_knows_the_geometry(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptvis_vllm.geometry import locate

    monkeypatch.setattr(locate, "FAMILIES", {})
    message = "^adaptvis_boxes cannot be placed: where image positions lie is not known of Llava"
    with pytest.raises(ValueError, match=message):
        asked(engine, prompt(1), ScalingVis(2, boxes=(0, 0, 9, 9)))


@pytest.mark.parametrize("name", ["option_tokens", "positions"])
def test_what_admission_finds_is_no_parameter(engine: Any, name: str) -> None:
    from vllm import SamplingParams

    args = {"adaptvis_alpha": 2, f"adaptvis_{name}": "1;2"}
    with pytest.raises(ValueError, match=f"unknown parameter adaptvis_{name}"):
        generate(engine, [prompt(1)], SamplingParams(extra_args=args))


def test_defaults_of_an_engine(model: Path) -> None:
    """Chosen once for all requests; a wrong one stops the engine before it starts."""
    for wrong, message in (
        ({"alpha": 2, "heads": "9.0"}, "heads names layer 9"),
        ({"candidates": [2], "options": ["on", "on top"]}, "options: 'on' begins with no token"),
    ):
        with pytest.raises(ValueError, match=message):
            make_llm(model, additional_config={"adaptvis": wrong})
    defaults = {"mode": "adaptive", "preset": "coco", "heads": "2.*", "options": ["left", "right"]}
    llm = make_llm(model, additional_config={"adaptvis": defaults})
    try:
        output = generate(llm, [prompt(1)], sampling())[0]
        assert output.adaptvis["option"] in ("left", "right")
        assert "option" not in generate(llm, [prompt(1)], sampling(ScalingVis(2)))[0].adaptvis
    finally:
        close(llm)
