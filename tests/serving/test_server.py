"""A real server, asked as users ask it: steered answers, their reports and their streams."""

from __future__ import annotations

import base64
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from support.engine import flat
from support.http_server import (
    HIGH,
    IMAGES,
    LOW,
    OFF,
    THRESHOLD,
    WAYS,
    assert_same_report,
    chat,
    options,
    report,
    text,
    token_ids,
)

from adaptvis_vllm.maps.maps import Maps

Generated = dict[tuple[str, int], dict[str, Any]]


@pytest.mark.parametrize("way", WAYS)
def test_chat_answers_as_generate(client: openai.OpenAI, generated: Generated, way: str) -> None:
    """Token for token, whichever process is asked: defaults, overrides, `mode: off`."""
    xargs = WAYS[way][0]

    def streamed(image: int) -> tuple[str, list[int], Any]:
        chunks = list(chat(client, image, xargs, stream=True))
        parts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        tokens = [token for c in chunks for choice in c.choices for token in token_ids(choice)]
        ends = [c for c in chunks if c.choices and c.choices[0].finish_reason]
        assert [report(c) for c in chunks if report(c)] == [report(ends[0])]
        return "".join(parts), tokens, report(ends[0])

    with ThreadPoolExecutor(len(IMAGES)) as pool:
        answers = list(pool.map(lambda image: chat(client, image, xargs), IMAGES))
        streams = list(pool.map(streamed, IMAGES))
    for image, answer, (stream_text, tokens, end) in zip(IMAGES, answers, streams, strict=True):
        expected = generated[way, image]
        assert token_ids(answer.choices[0]) == expected["token_ids"] == tokens
        assert text(answer) == expected["text"] == stream_text
        assert_same_report(report(answer), expected["adaptvis"])
        assert_same_report(end, expected["adaptvis"])
        assert answer.model_extra.get("kv_transfer_params") is None


def test_steering_matters(generated: Generated) -> None:
    """The comparisons above would notice steering that is not there."""
    for way in ("default", "scaling", "layers"):
        changed = [
            generated[way, i]["token_ids"] != generated["off", i]["token_ids"] for i in IMAGES
        ]
        assert sum(changed) >= 2, way
    alphas = {generated["default", i]["adaptvis"]["alpha"] for i in IMAGES}
    assert alphas == {LOW, HIGH}


def test_alpha_follows_the_confidence(client: openai.OpenAI) -> None:
    """It is the unsteered first token's probability, and alpha is on its side of the threshold."""
    for image in IMAGES:
        plain = chat(client, image, OFF, logprobs=True, top_logprobs=1)
        best = plain.choices[0].logprobs.content[0].top_logprobs[0].logprob
        given = report(chat(client, image, None))
        assert given["confidence"] == pytest.approx(math.exp(best), abs=1e-4)
        assert given["alpha"] == (LOW if given["confidence"] < THRESHOLD else HIGH)
        assert given["steered"]


def test_alpha_one_changes_nothing(client: openai.OpenAI) -> None:
    for image in IMAGES:
        plain, same = (
            chat(client, image, xargs, logprobs=True, top_logprobs=3)
            for xargs in (OFF, {"adaptvis_alpha": 1.0})
        )
        assert text(plain) == text(same)
        for one, other in zip(
            plain.choices[0].logprobs.content, same.choices[0].logprobs.content, strict=True
        ):
            assert [t.token for t in one.top_logprobs] == [t.token for t in other.top_logprobs]
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        off = {"mode": "off", "confidence": None, "alpha": None}
        assert report(plain) == {**off, "steered": False, "reason": "mode off"}
        assert report(same)["alpha"] == 1.0


def test_several_choices(client: openai.OpenAI) -> None:
    """n > 1: one report, streamed with the end of each choice."""
    more = {"n": 3, "temperature": 1.0, "seed": 7}
    answer = chat(client, 1, None, **more)
    assert len(answer.choices) == 3
    assert report(answer)["steered"]
    ends: dict[int, Any] = {}
    for chunk in chat(client, 1, None, stream=True, **more):
        for choice in chunk.choices:
            if choice.finish_reason:
                ends[choice.index] = report(chunk)
    assert set(ends) == {0, 1, 2}
    for end in ends.values():
        assert_same_report(end, report(answer))


def test_merged_outputs_keep_the_report() -> None:
    """Of a slow reader's two outputs only the first one has a choice that ended."""
    from vllm.outputs import RequestOutput

    from adaptvis_vllm.plugin import register

    register()
    one, other = (RequestOutput("0", None, [1], None, [], False) for _ in range(2))
    one.kv_transfer_params = {"adaptvis": {"mode": "scaling"}}
    one.adaptvis_maps = "maps"
    one.add(other, aggregate=True)
    assert one.adaptvis == {"mode": "scaling"}
    assert one.adaptvis_maps == "maps"
    other.add(one, aggregate=True)
    assert other.adaptvis_maps == "maps"


def test_stream_with_usage(client: openai.OpenAI) -> None:
    """The usage chunk after the finish reason carries no report."""
    *_, end, usage = chat(client, 0, None, stream=True, stream_options={"include_usage": True})
    assert not usage.choices
    assert report(usage) is None
    assert report(end)["steered"]


def test_candidates(client: openai.OpenAI) -> None:
    """The unsteered answer, streamed or not; the best first tokens are those of one alpha each."""
    xargs = {"adaptvis_candidates": [3.0, 0.3], "adaptvis_layers": "0-2"}
    plain = chat(client, 0, OFF)
    answer, *several = (
        chat(client, 0, xargs, **more) for more in ({}, {"n": 2, "temperature": 1.0, "seed": 3})
    )
    assert text(answer) == text(plain)
    found = report(answer)
    assert {k: found[k] for k in ("mode", "alpha", "steered", "reason")} == {
        "mode": "candidates",
        "alpha": None,
        "steered": False,
        "reason": "mode candidates",
    }
    assert found["confidence"] == found["confidences"]["max_prob"]
    for one, alpha in zip(found["candidates"], (3.0, 0.3), strict=True):
        alone = chat(
            client,
            0,
            {"adaptvis_alpha": alpha, "adaptvis_layers": "0-2"},
            max_tokens=1,
            logprobs=True,
        )
        (token,) = alone.choices[0].logprobs.content
        assert one["alpha"] == alpha
        assert [one["token_id"]] == token_ids(alone.choices[0])
        assert one["token"] == text(alone)
        assert one["probability"] == pytest.approx(math.exp(token.logprob), abs=1e-4)
    assert flat(report(several[0])) == pytest.approx(flat(found), abs=1e-4)
    chunks = list(chat(client, 0, {**xargs, "adaptvis_candidates": "3,0.3"}, stream=True))
    reports = [report(c) for c in chunks if report(c)]
    assert [c.choices[0].finish_reason is not None for c in chunks if report(c)] == [True]
    assert flat(reports[0]) == pytest.approx(flat(found), abs=1e-4)
    none = report(chat(client, None, xargs))
    assert (none["reason"], none["candidates"]) == ("no image", [])


def test_maps(client: openai.OpenAI) -> None:
    """A field of the response, or of the chunk with the report; nothing else changes."""
    xargs = {"adaptvis_alpha": 3.0, "adaptvis_maps": "1-2", "adaptvis_maps_tokens": 2}
    plain = chat(client, 0, {"adaptvis_alpha": 3.0})
    answer = chat(client, 0, xargs)
    assert text(answer) == text(plain)
    assert report(answer) == report(plain)
    assert maps_of(plain) is None
    maps = maps_of(answer)
    assert maps.layers.tolist() == [1, 2]
    assert maps.after.shape == maps.before.shape == (2, 4, 16)
    assert maps.tokens.shape == (2, 2, 4, 16)
    assert not maps.unknown
    assert "adaptvis" not in str(answer.kv_transfer_params)
    chunks = list(chat(client, 0, xargs, stream=True))
    assert [maps_of(c) is not None for c in chunks] == [report(c) is not None for c in chunks]
    (streamed,) = [maps_of(c) for c in chunks if maps_of(c)]
    assert np.allclose(streamed.after, maps.after, atol=1e-3)
    off = chat(client, 0, {"adaptvis_mode": "off", "adaptvis_maps": "all"})
    assert report(off)["reason"] == "mode off"
    assert maps_of(off).after is None
    assert maps_of(chat(client, None, xargs)) is None
    several = client.completions.create(prompt=["a cat", "a dog"], **options(xargs))
    assert maps_of(several) is None


def maps_of(answer: Any) -> Maps | None:
    field = getattr(answer, "adaptvis_maps", None)
    return field and Maps.from_bytes(base64.b64decode(field))


def test_no_image(client: openai.OpenAI) -> None:
    expected = {"mode": "adaptive", "confidence": None, "alpha": None, "steered": False}
    given = report(chat(client, None, None))
    assert given == {**expected, "reason": "no image"}


def test_completions(client: openai.OpenAI) -> None:
    """Text only, so never steered: one report, or one per prompt."""
    none = {"confidence": None, "alpha": None, "steered": False, "reason": "no image"}
    adaptive, scaling = {"mode": "adaptive", **none}, {"mode": "scaling", **none}
    create = client.completions.create
    xargs = {"adaptvis_alpha": 3.0}
    assert report(create(prompt="a cat", **options(None))) == adaptive
    assert report(create(prompt="a cat", **options(xargs))) == scaling
    assert report(create(prompt=["a cat", "a dog"], **options(xargs))) == [scaling, scaling]
    plain = create(prompt="a cat", **options(OFF)).choices[0].text
    assert create(prompt="a cat", **options(xargs)).choices[0].text == plain
    chunks = list(create(prompt=["a cat", "a dog"], **options(xargs, stream=True)))
    ends = [c for c in chunks if c.choices and c.choices[0].finish_reason]
    assert [report(c) for c in ends] == [scaling, scaling]
    assert sum(report(c) is not None for c in chunks) == 2
    first = [c.choices[0].text for c in chunks if c.choices and c.choices[0].index == 0]
    assert "".join(first) == plain


def test_forty_clients_at_once(client: openai.OpenAI, generated: Generated) -> None:
    """Five times what the engine runs at a time, of every way, half of them streamed."""
    keys = [(way, image) for image in IMAGES for way in WAYS]
    keys = (keys * 2)[:80]

    def ask(number: int) -> tuple[list[int], Any]:
        way, image = keys[number]
        if number % 2:
            answer = chat(client, image, WAYS[way][0])
            return token_ids(answer.choices[0]), report(answer)
        chunks = list(chat(client, image, WAYS[way][0], stream=True))
        tokens = [token for c in chunks for choice in c.choices for token in token_ids(choice)]
        return tokens, next(report(c) for c in chunks if report(c))

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(len(keys))))
    for key, (tokens, given) in zip(keys, answers, strict=True):
        assert tokens == generated[key]["token_ids"], key
        assert_same_report(given, generated[key]["adaptvis"])


def test_a_stop_string_keeps_the_report(client: openai.OpenAI, generated: Generated) -> None:
    """It ends a request in the front end; the engine core never sends a last output."""
    for way in ("default", "scaling"):
        expected = generated[way, 1]
        stop = expected["text"][4:7]
        answer = chat(client, 1, WAYS[way][0], stop=[stop])
        assert answer.choices[0].finish_reason == "stop"
        assert text(answer) == expected["text"][: expected["text"].index(stop)]
        assert_same_report(report(answer), expected["adaptvis"])
        chunks = list(chat(client, 1, WAYS[way][0], stop=[stop], stream=True))
        reports = [report(c) for c in chunks if report(c)]
        assert len(reports) == 1
        assert_same_report(reports[0], expected["adaptvis"])


def test_structured_output(client: openai.OpenAI) -> None:
    """The grammar applies to the steered answer."""
    answer = chat(client, 0, None, extra_body={"structured_outputs": {"choice": ["left", "right"]}})
    assert text(answer) in ("left", "right")
    assert report(answer)["steered"]
