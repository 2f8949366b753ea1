"""The oracle itself, against stock transformers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.images import make_image, make_images
from checkpoints.llava import make_llava
from support.recorder import Recorder
from transformers import AutoModelForImageTextToText

from adaptvis_vllm import AdaptVis, Candidates, Off, ScalingVis, SteeringParams
from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.reference.inputs import chat_text, prepare
from adaptvis_vllm.reference.model import ReferenceModel
from adaptvis_vllm.reference.rows import run as rows_of

ONE = "USER: <image>\nWhere is the cat? ASSISTANT:"
TWO = "USER: <image>\nand <image>\nWhich is brighter? ASSISTANT:"
NONE = "USER: Where is the cat? ASSISTANT:"
PROMPTS = [(ONE, make_images(1)), (TWO, make_images(2, first=3)), (NONE, [])]
PROMPT_IDS = ["one-image", "two-images", "no-image"]


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma2"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: Any) -> ReferenceModel:
    path = tmp_path_factory.mktemp("models") / request.param
    return ReferenceModel(make_llava(path, text=request.param))


@pytest.fixture(scope="module")
def llama(model: Path) -> ReferenceModel:
    return ReferenceModel(model)


@pytest.mark.parametrize(("prompt", "images"), PROMPTS, ids=PROMPT_IDS)
def test_unsteered_is_stock_transformers(
    reference: ReferenceModel, prompt: str, images: list[Any]
) -> None:
    path = reference.model.config._name_or_path
    stock = AutoModelForImageTextToText.from_pretrained(path, attn_implementation="eager").eval()
    inputs = reference.processor(text=prompt, images=images or None, return_tensors="pt")
    out = stock.generate(
        **inputs,
        max_new_tokens=12,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    for params in (None, Off()):
        ours = reference.generate(prompt, images, params, max_tokens=12)
        assert ours.prompt_token_ids == inputs["input_ids"][0].tolist()
        assert ours.token_ids == out.sequences[0, len(ours.prompt_token_ids) :].tolist()
        table = torch.cat(out.logits).log_softmax(-1)
        assert ours.logprobs == [table[i, t].item() for i, t in enumerate(ours.token_ids)]
        assert ours.report.as_dict() == {
            "mode": "off",
            "confidence": None,
            "alpha": None,
            "steered": False,
            "reason": "mode off",
        }


def test_maps_are_the_attentions_of_stock_transformers(reference: ReferenceModel) -> None:
    """Of all layers and of some; windows, of which the cache holds the last keys alone."""
    path = reference.model.config._name_or_path
    stock = AutoModelForImageTextToText.from_pretrained(path, attn_implementation="eager").eval()
    images = make_images(2)
    inputs = reference.processor(text=TWO, images=images, return_tensors="pt")
    rows = stock.generate(
        **inputs,
        max_new_tokens=5,
        do_sample=False,
        return_dict_in_generate=True,
        output_attentions=True,
    ).attentions
    length = inputs["input_ids"].shape[1]
    params = Off(maps="all", maps_tokens=2)
    answer = reference.generate(TWO, images, params, max_tokens=5, ignore_eos=True)
    maps = answer.maps
    assert maps is not None
    assert maps.after is maps.rest_after is None
    assert maps.positions.tolist() == answer.image_positions
    assert maps.layers.tolist() == [0, 1, 2, 3]
    pairs = [(maps.before, maps.rest_before)]
    pairs += zip(maps.tokens, maps.rest_tokens, strict=True)
    assert len(pairs) == 3
    windows = 0
    for step, (weights, rest) in enumerate(pairs):
        for layer in range(4):
            row = rows[step][layer][0, :, -1].numpy()
            behind = length + step - row.shape[-1]  # of a window's cache
            row = np.pad(row, ((0, 0), (behind, 0)))
            windows += row[:, 0].max() == 0
            np.testing.assert_allclose(weights[layer], row[:, maps.positions], atol=5e-4)
            text = np.delete(row, maps.positions, axis=1)
            np.testing.assert_allclose(rest[layer, :, 0], text[:, 0], atol=5e-4)
            np.testing.assert_allclose(rest[layer, :, 1], text[:, 1:].sum(1), atol=5e-4)
    assert windows == {"llama": 0, "gemma2": 6, "mistral": 12}[stock.config.text_config.model_type]
    some = dataclasses.replace(params, maps="0,2-3", maps_tokens=9)
    few = reference.generate(TWO, images, some, max_tokens=3, ignore_eos=True).maps
    assert few.layers.tolist() == [0, 2, 3]
    assert (few.before == maps.before[[0, 2, 3]]).all()
    assert (few.tokens == maps.tokens[:, [0, 2, 3]]).all()  # the third token is no query
    first = reference.generate(TWO, images, some, max_tokens=1).maps
    assert first.tokens.shape == (0, 3, 4, 32)


def test_maps_of_a_steered_request(reference: ReferenceModel) -> None:
    """Before is the unsteered pass's; after that of the alpha that was chosen; then the keys stay.
    Layers that are not steered see what the others did."""
    images = make_images(2)

    def maps(params: SteeringParams) -> Maps:
        params = dataclasses.replace(params, maps="all", maps_tokens=2)
        return reference.generate(TWO, images, params, max_tokens=4, ignore_eos=True).maps

    off, scaling = maps(Off()), maps(ScalingVis(3))
    assert (scaling.before == off.before).all()
    assert (scaling.rest_before == off.rest_before).all()
    assert (scaling.after[0].astype(np.float32) - off.before[0]).max() > 1e-2
    for threshold, alpha in ((0.0, 3), (1.0, 0.3)):
        adaptive, given = maps(AdaptVis(0.3, 3, threshold)), maps(ScalingVis(alpha))
        for name in ("before", "after", "tokens", "rest_before", "rest_after", "rest_tokens"):
            assert (getattr(adaptive, name) == getattr(given, name)).all()
    some = maps(ScalingVis(3, layers="1"))
    same = [(some.after[i] == off.before[i]).all() for i in range(4)]
    assert same == [True, False, False, False]
    candidates = maps(Candidates((0.3, 3)))
    assert candidates.after is None
    assert (candidates.before == off.before).all()
    assert (candidates.tokens == off.tokens).all()
    one = maps(ScalingVis(1))
    assert (one.after == one.before).all()


def test_maps_say_which_picture(llama: ReferenceModel) -> None:
    """And that no more is known; typed placeholders are text."""
    images = [make_image(0), make_image(18)]
    text = TWO.replace("?", " of <image>?")
    maps = llama.generate(text, images, Off(maps="all"), max_tokens=1).maps
    assert maps.image.tolist() == [0] * 16 + [1] * 16
    assert maps.sizes.tolist() == [list(image.size) for image in images]
    assert np.isnan(maps.boxes).all()
    assert set(maps.frame) == {-1}
    with pytest.raises(ValueError, match=r"^plain transformers does not say which part"):
        maps.overlay(images[0])
    assert llama.generate(NONE, [], Off(maps="all")).maps is None
    assert llama.generate(ONE, images[:1], Off()).maps is None
    with pytest.raises(ValueError, match=r"maps is '4', but the model has layers 0-3"):
        llama.generate(ONE, images[:1], Off(maps="4"))


@pytest.mark.parametrize("span", ["embeddings", "interval"])
def test_alpha_one_changes_no_bit(reference: ReferenceModel, span: str) -> None:
    plain = reference.generate(TWO, make_images(2))
    steered = reference.generate(TWO, make_images(2), ScalingVis(1, span=span))
    assert steered.report.steered
    assert dataclasses.replace(steered, report=plain.report) == plain


def attention_outputs(
    reference: ReferenceModel, params: SteeringParams | None, **options: Any
) -> Recorder:
    with Recorder(reference) as recorder:
        reference.generate(TWO, make_images(2), params, **options)
    return recorder


@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_only_the_last_prompt_row_changes(reference: ReferenceModel, alpha: float) -> None:
    plain = attention_outputs(reference, None, max_tokens=1)
    steered = attention_outputs(reference, ScalingVis(alpha), max_tokens=1)
    for (before,), (after,) in zip(plain.calls, steered.calls, strict=True):
        assert torch.equal(before[:-1], after[:-1])
        assert (before[-1] - after[-1]).abs().max() > 1e-3


def test_only_the_chosen_layers_change(reference: ReferenceModel) -> None:
    plain = attention_outputs(reference, None, max_tokens=1)
    steered = attention_outputs(reference, ScalingVis(3, layers="2"), max_tokens=1)
    same = [torch.equal(a, b) for (a,), (b,) in zip(plain.calls, steered.calls, strict=True)]
    assert same == [True, True, False, False]  # layer 3 sees what layer 2 did


def test_decoding_is_not_scaled(llama: ReferenceModel) -> None:
    """Stock attention from the steered cache on gives the same answer."""
    params = ScalingVis(2.5)
    answer = llama.generate(ONE, make_images(1), params, max_tokens=6, ignore_eos=True)
    inputs = prepare(llama.processor, ONE, make_images(1), [])
    length = inputs["input_ids"].shape[1]
    with llama._steered(params, params.alpha, answer.image_positions, length), torch.no_grad():
        out = llama.model(**inputs, use_cache=True)
    llama.model.get_decoder().set_attn_implementation("eager")
    try:
        for i, token in enumerate(answer.token_ids):
            logprob = out.logits[0, -1].log_softmax(-1)[token].item()
            assert logprob == pytest.approx(answer.logprobs[i], abs=1e-5)
            with torch.no_grad():
                out = llama.model(
                    input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values
                )
    finally:
        llama.model.get_decoder().set_attn_implementation("adaptvis_reference")


@pytest.mark.parametrize("kind", ["max_prob", "margin", "entropy"])
def test_adaptive_chooses_by_confidence(reference: ReferenceModel, kind: str) -> None:
    plain = reference.generate(ONE, make_images(1, first=4), logprobs=2)
    probe = AdaptVis(0.4, 2.5, 0.5, confidence=kind)
    report = reference.generate(ONE, make_images(1, first=4), probe).report
    assert report.confidence is not None
    top = [math.exp(v) for _, v in plain.top_logprobs[0]]
    if kind == "max_prob":
        assert report.confidence == pytest.approx(top[0], abs=1e-6)
    if kind == "margin":
        assert report.confidence == pytest.approx(top[0] - top[1], abs=1e-6)
    for threshold, alpha in [
        (report.confidence * 0.999, 2.5),
        (report.confidence, 2.5),  # C < threshold is strict
        (min(report.confidence * 1.001, 1), 0.4),
    ]:
        params = dataclasses.replace(probe, threshold=threshold)
        adaptive = reference.generate(ONE, make_images(1, first=4), params)
        scaling = reference.generate(ONE, make_images(1, first=4), ScalingVis(alpha))
        assert adaptive.report.alpha == alpha
        assert adaptive.report.confidence == report.confidence
        assert (adaptive.report.steered, adaptive.report.reason) == (True, None)
        assert adaptive.token_ids == scaling.token_ids
        assert adaptive.logprobs == scaling.logprobs


def test_confidence_is_rounded_before_the_comparison(llama: ReferenceModel) -> None:
    image = next(
        [image]
        for image in make_images(30)
        if 0.001 < math.exp(llama.generate(ONE, [image], max_tokens=1).logprobs[0]) % 0.01 < 0.004
    )
    conf = llama.generate(ONE, image, AdaptVis(1, 2, 0)).report.confidence
    assert conf is not None
    threshold = round(conf, 2) + 0.0005  # between the rounded value and the exact one
    assert round(conf, 2) < threshold < conf
    rounded = AdaptVis(0.5, 1.5, threshold, confidence_decimals=2)
    assert llama.generate(ONE, image, rounded).report.alpha == 0.5
    exact = dataclasses.replace(rounded, confidence_decimals=None)
    report = llama.generate(ONE, image, exact).report
    assert report.alpha == 1.5
    assert report.confidence == conf  # reported unrounded


@pytest.mark.parametrize("params", [ScalingVis(2), AdaptVis(preset="coco")], ids=["sc", "ad"])
def test_no_image_is_a_no_op(llama: ReferenceModel, params: SteeringParams) -> None:
    with Recorder(llama) as recorder:
        answer = llama.generate(NONE, [], params, max_tokens=5, ignore_eos=True)
    assert len(recorder.embeddings) == 5  # one pass
    assert answer.token_ids == llama.generate(NONE, max_tokens=5, ignore_eos=True).token_ids
    report = answer.report
    assert (report.mode, report.steered, report.reason) == (params.mode, False, "no image")
    assert report.alpha is report.confidence is None


def test_steering_matters(llama: ReferenceModel) -> None:
    """The tiny checkpoint is worth testing with."""
    answers, confidences = {}, []
    for alpha in (None, 0.3, 0.8, 1.5, 3.0):
        params = None if alpha is None else ScalingVis(alpha)
        answers[alpha] = [tuple(llama.generate(ONE, [make_image(i)], params).token_ids)
                          for i in range(12)]  # fmt: skip
    assert len(set(answers[None])) >= 10
    for alpha in (0.3, 0.8, 1.5, 3.0):
        changed = sum(a != b for a, b in zip(answers[None], answers[alpha], strict=True))
        assert changed >= 5
    for i in range(12):
        report = llama.generate(ONE, [make_image(i)], AdaptVis(1, 2, 0), max_tokens=1).report
        confidences.append(report.confidence or 0.0)
    assert min(confidences) < 0.3 < 0.5 < max(confidences)


def test_end_of_sequence_and_length(llama: ReferenceModel) -> None:
    stopped = next(
        (i, answer)
        for i in range(60)
        if (answer := llama.generate(ONE, [make_image(i)])).finish_reason == "stop"
    )
    i, answer = stopped
    eos = llama.tokenizer.eos_token_id
    assert answer.token_ids[-1] == eos
    assert eos not in answer.token_ids[:-1]
    assert "</s>" not in answer.text
    going_on = llama.generate(ONE, [make_image(i)], ignore_eos=True, max_tokens=20)
    assert going_on.token_ids[: len(answer.token_ids)] == answer.token_ids
    assert (len(going_on.token_ids), going_on.finish_reason) == (20, "length")
    one = llama.generate(ONE, [make_image(i)], max_tokens=1, logprobs=3)
    assert one.token_ids == answer.token_ids[:1]
    assert one.top_logprobs[0][0] == (one.token_ids[0], one.logprobs[0])
    assert len(one.top_logprobs[0]) == 3


def test_messages_use_the_chat_template(llama: ReferenceModel) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Where?"},
    ]
    prompt = "USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"
    by_messages = llama.generate(messages, make_images(1), ScalingVis(2))
    assert by_messages == llama.generate(prompt, make_images(1), ScalingVis(2))


def test_a_typed_placeholder_is_text(llama: ReferenceModel) -> None:
    """The first ones are the pictures; what is typed keeps its token and is not steered."""
    image, params = make_images(1), ScalingVis(3)
    plain = llama.generate(ONE, image, params)
    typed = llama.generate(ONE.replace("cat", "cat <image>"), image, params)
    assert typed.image_positions == plain.image_positions
    token = llama.feature_tokens["image"]
    found = [i for i, t in enumerate(typed.prompt_token_ids) if t == token]
    assert len(found) == len(plain.image_positions) + 1
    words = llama.tokenizer(ONE.replace("cat", "cat <image>"))["input_ids"]
    assert len(typed.prompt_token_ids) == len(words) + len(plain.image_positions) - 1
    assert llama.generate("<image>" + NONE, params=params).report.reason == "no image"
    assert llama.generate(ONE, image, params) == plain


def test_chat_texts(llama: ReferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates that go through parts get parts, as from vLLM; others get texts."""
    image: Any = {"type": "image"}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": [image, "What?", {"type": "text", "text": "Where?"}]},
        {"role": "assistant"},
        {"role": "user", "content": "Why?"},
    ]
    assert chat_text(llama.processor, chat) == (
        "<s>USER: <image>\nWhat?Where? ASSISTANT: </s>USER: Why? ASSISTANT:"
    )
    # LLaVA-1.5's own template: of a text that is no part it writes nothing.
    llavas = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %} <image>{% endfor %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %} {{ c['text'] }}"
        "{% endfor %};{% endfor %}"
    )
    monkeypatch.setattr(llama.processor, "chat_template", llavas)
    expected = "user: <image> What? Where?;assistant:;user: Why?;"
    assert chat_text(llama.processor, chat) == expected
    texts = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }};{% endfor %}"
    for template in (texts, texts.replace("+ ': ' +", "}}: {{")):
        monkeypatch.setattr(llama.processor, "chat_template", template)
        assert chat_text(llama.processor, chat[1:]) == "assistant: ;user: Why?;"
        with pytest.raises(ValueError, match="no place for pictures"):
            chat_text(llama.processor, chat)


def test_a_row_that_fails_is_an_error_row(llama: ReferenceModel, tmp_path: Path) -> None:
    """Whatever transformers raises; the others are answered."""
    make_image(0).save(tmp_path / "0.png")
    strange = [{"type": "audio_url", "audio_url": {"url": "a.wav"}}]
    rows = [
        {"image": "0.png", "prompt": NONE},  # a picture too many
        {"messages": [{"role": "user", "content": strange}]},
        {"image": "0.png", "question": "Where is <image>?"},
    ]
    answers = list(rows_of(llama, rows, tmp_path))
    assert [row["error"] is None for row in answers] == [False, False, True]
    assert "is no text, image or video" in answers[1]["error"]


def test_rows_write_their_maps(llama: ReferenceModel, tmp_path: Path) -> None:
    """Of all layers by default; a row that asks for maps without a folder is an error row."""
    make_image(0).save(tmp_path / "0.png")
    asked = {"image": "0.png", "question": "Where?", "max_tokens": 4}
    rows: list[dict[str, Any]] = [
        {"id": "a/b", **asked},
        {"id": 2, **asked, "adaptvis": {"alpha": 3, "maps": "1-2", "maps_tokens": 1}},
        {"id": 3, **asked, "adaptvis": {"alpha": 3, "maps": "none"}},
        {"id": 4, "question": "Where?"},
    ]
    folder = MapFolder(tmp_path / "maps")
    answers = list(rows_of(llama, rows, tmp_path, None, Off(maps="all"), folder))
    assert [row["error"] for row in answers] == [None] * 4
    plain, steered = (Maps.load(folder.file(name)) for name in ("a/b", 2))
    assert len(list(folder.folder.iterdir())) == 2
    assert (plain.layers.tolist(), plain.after) == ([0, 1, 2, 3], None)
    assert steered.layers.tolist() == [1, 2]
    assert (steered.before == plain.before[1:3]).all()
    assert len(steered.tokens) == 1
    answers = list(rows_of(llama, rows, tmp_path))
    assert [row["error"] is None for row in answers] == [True, False, True, True]
    assert answers[1]["error"].endswith("--maps FOLDER given")


def test_refusals(llama: ReferenceModel) -> None:
    with pytest.raises(ValueError, match=r"^layers is '0-4', but the model has layers 0-3"):
        llama.generate(ONE, make_images(1), ScalingVis(1, layers="0-4"))
    with pytest.raises(ValueError, match="max_tokens"):
        llama.generate(ONE, make_images(1), max_tokens=0)
    plain = llama.generate(ONE, make_images(1))
    assert plain == llama.generate(ONE, make_images(1))
