"""What a server refuses, and that it lives on: never a 500, never silently unsteered."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import openai
import pytest
from support.hostile import HEADS, IMAGES_BAD, LAYERS, huge_image, random_xargs, xargs_type
from support.http_server import (
    DEFAULTS,
    ENGINE,
    assert_refused,
    chat,
    environment,
    healthy,
    messages,
    post,
    text,
)
from support.waiting import HANG_S

from adaptvis_vllm import SteeringParams
from adaptvis_vllm.bench.serve import free_port
from adaptvis_vllm.steering.defaults import ROWS, check_candidates

REQUESTS = int(os.environ.get("ADAPTVIS_TEST_FUZZ", "500"))
CHAT = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "?"}]}
COMPLETION = {"model": "tiny", "max_tokens": 2, "prompt": "?"}
PATHS = (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION))
NAN, INF = float("nan"), float("inf")
BAD_ALPHA = [0, 0.0, -1, 100.1, 1e-300, NAN, INF, -INF, "0.5", "", "nan", [0.5], {}, None]
# JSON true arrives as 1: vLLM converts it where 1 is allowed.
BAD: dict[str, list[Any]] = {
    "mode": ["", "Adaptive", "on", 1, True, ["off"], {}, None],
    "alpha": BAD_ALPHA,
    "alpha_low": BAD_ALPHA,
    "alpha_high": BAD_ALPHA,
    "threshold": [-0.1, 1.01, NAN, INF, "0.4", [0.4], {}, None],
    "layers": ["", "a", "3-1", "-1", "1-", "0,,2", 1.5, -1, [], [-1], ["x"], "0-99", 4, {}, None],
    "confidence": ["maxprob", "", 1, ["margin"], {}, None],
    "confidence_decimals": [-1, 7, 2.0, "2", "", NAN, [2], {}, None],
    "span": ["frames", "", 0, {}, None],
    "preset": ["", "COCO", "controlled", 3, {}, None],
    "candidates": [0, "", "a", "0.5,0.5", [], [0.5, -1], ["x"], [0.5, 1, 2], "1,2,3", NAN, {},
                   None],
    "maps": ["", "a", "3-1", -1, 1.5, [], [-1], ["x"], "0-99", 4, "none,1", {}, None],
    "maps_tokens": [-1, 1025, 1.5, "2", "", NAN, [2], {}, None, 3],
    "heads": ["", "a", "3", 3, 1.5, "4.0", "0.4", "0.3-1", "1.2.3", [], [1.5], ["x"], {}, None],
    "images": ["", "a", "1-0", -1, 1.5, [], ["x"], {}, None],
    "videos": ["", "a", "1-0", -1, 1.5, [], ["x"], {}, None],
    "boxes": ["", "0,0,1", "0,0,0,1", [0, 0, 1], [5, 0, 3, 9], [0, -1, 1, 1], [], ["x"], 4, {},
              None],
    "rule": ["", "PAI", 1, ["pai"], {}, None],
    "rows": ["", "all", 1, ["last"], {}, None],
    "options": ["", "Left", "Left,Left", [], ["a"], [1, 2], 3, "choices", ["on", "on top"], {},
                None],
    "heads ": [{"alpha": 2, "layers": "0", "heads": "0.1"}],
    "boxes ": [{"alpha": 2, "boxes": [0, 0, 1, 1], "videos": "0"}],
    "options ": [{"alpha": 2, "options": ["left", "right"]}],
    "rows ": [{"candidates": [2], "rows": "generated"}],
    # Whole requests: missing partners, contradictions, unknown names.
    "alpha ": [{"mode": "scaling"}, {"mode": "off", "alpha": 2}, {"alpha": 2, "threshold": 0.1}],
    "alpha_low ": [{"alpha_low": 1, "mode": "scaling", "alpha": 2}],
    "preset ": [{"mode": "adaptive", "preset": "vsr"}, {"mode": "off", "preset": "coco"}],
    "threshold ": [{"treshold": 0.5}, {"mode": "scaling", "alpha": 1, "threshold": 0.5}],
    "alpha_hi": [{"alpha_hi": 2}],
    "candidates ": [{"mode": "candidates"}, {"candidates": [2], "mode": "off"}],
    "zzz": [{"zzz": 1}, {"mode": "off", "zzz": 1}],
}  # fmt: skip


def test_every_field_has_bad_values() -> None:
    assert {f.name for f in fields(SteeringParams)} <= set(BAD)


@pytest.mark.parametrize("field", BAD)
def test_a_bad_parameter_is_refused(url: str, field: str) -> None:
    """HTTP 400 that names the field, for both endpoints, streamed and not."""
    name = field.strip()
    for value in BAD[field]:
        given = value if isinstance(value, dict) and value else {name: value}
        if len(given) == 1 and name.startswith("alpha") and name != "alpha":
            given = {"mode": "adaptive", **given}
        elif len(given) == 1 and name in ("layers", "confidence", "confidence_decimals", "span"):
            given = {"mode": "adaptive", "preset": "coco", **given}
        xargs = {f"adaptvis_{k}": v for k, v in given.items()}
        for path, body in PATHS:
            for stream in (False, True):
                answer = post(url, path, {**body, "vllm_xargs": xargs, "stream": stream})
                assert_refused(answer, f"adaptvis_{name}")
    assert healthy(url)


def test_the_error_has_the_parameter(url: str) -> None:
    """As OpenAI's errors have it, in `param`."""
    for xargs, name in (({"alpha": 0}, "alpha"), ({"mode": "scaling"}, "alpha"), ({"x": 1}, None)):
        given = {f"adaptvis_{k}": v for k, v in xargs.items()}
        error = post(url, "/v1/chat/completions", {**CHAT, "vllm_xargs": given}).json()["error"]
        assert error["param"] == (name and f"adaptvis_{name}")


@pytest.mark.parametrize(
    "key", ["adaptvis", "AdaptVis_mode", "adaptvis-alpha", "adaptvis_", "adaptvis_\ud800\u0000"]
)
def test_a_name_that_looks_like_ours_is_refused(url: str, key: str) -> None:
    answer = post(url, "/v1/chat/completions", {**CHAT, "vllm_xargs": {key: 1}})
    assert_refused(answer, key.split("\ud800")[0])


@pytest.mark.parametrize("key", ["adaptvis", "adaptvis_alpha", "AdaptVis_mode"])
def test_a_misplaced_parameter_is_refused(url: str, key: str) -> None:
    """vLLM ignores fields that it does not know: the request would run unsteered."""
    for path, body in (*PATHS, ("/v1/responses", {"model": "tiny", "input": "?"})):
        assert_refused(post(url, path, {**body, key: 2.0}), key)


@pytest.mark.parametrize("refused", [{"adaptvis_alpha": -1}, {"adaptvis_layers": "0-99"}, "beams"])
def test_a_refused_picture_can_be_asked_about(url: str, refused: Any) -> None:
    """It never came to the engine, and vLLM does not count on the engine's having it."""
    body = {"model": "tiny", "max_tokens": 2, "messages": messages(50 + len(str(refused)))}
    wrong = {"use_beam_search": True} if refused == "beams" else {"vllm_xargs": refused}
    for _ in range(2):
        assert_refused(post(url, "/v1/chat/completions", {**body, **wrong}), "")
    answer = post(url, "/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["adaptvis"]["steered"]


def test_beam_search_is_refused(url: str) -> None:
    """Its steps are requests of their own, whose last prompt token is a generated one."""
    for path, body in PATHS:
        for xargs in ({"adaptvis_alpha": 2.0}, {"adaptvis_mode": "off"}, {}):
            asked = {**body, "use_beam_search": True, "n": 2, "vllm_xargs": xargs}
            assert_refused(post(url, path, asked), "beam search")


def test_maps_that_nobody_would_get_are_refused(url: str) -> None:
    asked = {"model": "tiny", "input": "?", "vllm_xargs": {"adaptvis_maps": "all"}}
    assert_refused(post(url, "/v1/responses", asked), "adaptvis_maps must be left out here")


@pytest.mark.parametrize("name", IMAGES_BAD)
def test_a_bad_image_is_refused(url: str, name: str) -> None:
    """4xx, whoever finds out."""
    parts = [{"type": "image_url", "image_url": {"url": IMAGES_BAD[name]()}}]
    body = {**CHAT, "messages": [{"role": "user", "content": parts}]}
    assert_refused(post(url, "/v1/chat/completions", body), "", range(400, 500))
    assert healthy(url)


def test_a_huge_image_is_answered(url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": huge_image()}}]
    body = {**CHAT, "messages": [{"role": "user", "content": parts}]}
    answer = post(url, "/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["adaptvis"]["steered"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'"adaptvis"',
        {**CHAT, "messages": []},
        {**CHAT, "messages": "?"},
        {**CHAT, "messages": [{}]},
        {**CHAT, "model": 7},
        {**CHAT, "max_tokens": "many"},
        {**CHAT, "max_tokens": -1},
        {**CHAT, "vllm_xargs": []},
        {**CHAT, "vllm_xargs": "adaptvis_alpha"},
        {**CHAT, "vllm_xargs": 3},
        {**CHAT, "vllm_xargs": {"adaptvis_alpha": {"value": 2}}},
        {**CHAT, "vllm_xargs": {"other": 10**30}},
        {**CHAT, "vllm_xargs": {"other": ["\ud800"]}},
        {**CHAT, "vllm_xargs": {"other": [float("nan"), None]}},
    ],
    ids=lambda body: (body if isinstance(body, bytes) else json.dumps(body)[-40:].encode()).decode(
        "latin-1"
    ),
)  # fmt: skip
def test_a_bad_body_is_refused(url: str, body: Any) -> None:
    assert_refused(post(url, "/v1/chat/completions", body), "")
    assert_refused(post(url, "/adaptvis/sweep", body), "")


def test_random_parameters(url: str) -> None:
    """HTTP 400 exactly where `SteeringParams` refuses them; else steered as they say.

    ADAPTVIS_TEST_FUZZ says how many; about half of them are valid.
    """
    rng = random.Random(4)
    asked = [random_xargs(rng) for _ in range(REQUESTS)]
    body = {"model": "tiny", "max_tokens": 1, "temperature": 0}
    pictures = [messages(image) for image in (0, 1)]

    def ask(number: int) -> Any:
        more = {"messages": pictures[number % 2], "vllm_xargs": asked[number]}
        return post(url, "/v1/chat/completions", {**body, **more})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(REQUESTS)))
    steered = 0
    for xargs, answer in zip(asked, answers, strict=True):
        expected = _expected(xargs)
        assert answer.status_code == (400 if expected is None else 200), (xargs, answer.text)
        if expected is None:
            assert "error" in answer.json()
            continue
        given = answer.json()["adaptvis"]
        assert given["mode"] == expected.mode, xargs
        shown = expected.steers and expected.kind != "video"  # the pictures are no videos
        assert given["steered"] == shown, xargs
        steered += given["steered"]
        if expected.candidates is not None and expected.kind != "video":
            assert [one["alpha"] for one in given["candidates"]] == list(expected.candidates)
        if not shown:
            assert given["alpha"] is None
        elif expected.mode == "scaling":
            assert given["alpha"] == expected.alpha
        else:
            assert given["alpha"] in (expected.alpha_low, expected.alpha_high)
    assert steered > REQUESTS / 5
    assert sum(answer.status_code == 400 for answer in answers) > REQUESTS / 5
    assert healthy(url)


def _expected(xargs: Any) -> SteeringParams | None:
    """What the request comes to; None if it is to be refused."""
    try:
        read = xargs_type().validate_python(json.loads(json.dumps(xargs)))
        params = SteeringParams.from_flat(read, defaults=DEFAULTS)
        assert params is not None
        params.check_model(LAYERS, HEADS)
        check_candidates(params, ROWS, "")
        params.check_prompt({"image": 1})
        json.dumps(read, ensure_ascii=False).encode()  # lone surrogates
    except ValueError:
        return None
    flat = [
        v
        for value in (read or {}).values()
        for v in (value if isinstance(value, list) else [value])
    ]
    fits = all(-(2**63) <= v < 2**64 for v in flat if isinstance(v, int))
    return params if fits else None


def test_it_still_answers(url: str, client: openai.OpenAI, generated: Any) -> None:
    """After all that was refused."""
    assert healthy(url)
    assert text(chat(client, 2, None)) == generated["default", 2]["text"]


def test_bad_defaults_stop_the_server(model: Path, tmp_path: Path) -> None:
    """vLLM's own command, with a sentence that names the field."""
    defaults = {"alpha": 2, "layers": "0-99"}
    command = [
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(free_port()), *ENGINE),
        *("--additional-config", json.dumps({"adaptvis": defaults})),
    ]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode != 0
    assert "layers is '0-99', but the model has layers 0-3" in done.stderr, done.stderr[-3000:]
