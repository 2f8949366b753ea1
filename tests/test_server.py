"""A real server, asked as users ask it: the openai client and plain HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from engine import close, generate, make_llm, prompt, sampling
from models.images import make_image

from adaptvis_vllm import AdaptVis, Off, ScalingVis, SteeringParams

# The confidences of the tiny model lie on both sides of the threshold.
LOW, HIGH, THRESHOLD = 0.5, 2.0, 0.2
DEFAULTS = {"alpha_low": LOW, "alpha_high": HIGH, "threshold": THRESHOLD}
OFF = {"adaptvis_mode": "off"}
IMAGES = range(6)
QUESTION = "Where is the red cat?"
WAYS: dict[str, tuple[dict[str, Any] | None, SteeringParams]] = {
    "default": (None, AdaptVis(LOW, HIGH, THRESHOLD)),
    "off": (OFF, Off()),
    "scaling": ({"adaptvis_alpha": 3.0}, ScalingVis(3.0)),
    "layers": ({"adaptvis_alpha": 3.0, "adaptvis_layers": "1-2"}, ScalingVis(3.0, layers="1-2")),
    "other threshold": ({"adaptvis_threshold": 0.0}, AdaptVis(LOW, HIGH, 0.0)),
    "margin": (
        {"adaptvis_confidence": "margin", "adaptvis_confidence_decimals": 2},
        AdaptVis(LOW, HIGH, THRESHOLD, confidence="margin", confidence_decimals=2),
    ),
}


def command(model: Path, defaults: Any, port: int) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", "tiny", "--dtype", "float32"),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager"),
        *("--max-model-len", "512", "--max-num-seqs", "8", "--block-size", "32"),
        *("--kv-cache-memory-bytes", str(64 * 2**20)),
        *("--additional-config", json.dumps({"adaptvis": defaults})),
    ]


def environment() -> dict[str, str]:
    mine = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **mine}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def offline(model: Path) -> dict[tuple[str, int], Any]:
    """(way, image) -> output of an engine in this process; it is gone when this returns."""
    llm = make_llm(model)
    keys = [(way, image) for way in WAYS for image in IMAGES]
    outputs = generate(
        llm,
        [prompt(image, QUESTION) for _, image in keys],
        [sampling(WAYS[way][1], logprobs=5) for way, _ in keys],
    )
    close(llm)
    return dict(zip(keys, outputs, strict=True))


@pytest.fixture(scope="module")
def url(model: Path, offline: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with adaptive defaults."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command(model, DEFAULTS, port),
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while not healthy(base):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.3)
        yield base
    finally:
        stop(process)


def healthy(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its children."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def messages(image: int | None, text: str = QUESTION) -> list[Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        buffer = io.BytesIO()
        make_image(image).save(buffer, "PNG")
        data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": data}})
    return [{"role": "user", "content": parts}]


def options(xargs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    extra = {} if xargs is None else {"extra_body": {"vllm_xargs": xargs}}
    return {"model": "tiny", "max_tokens": 8, "temperature": 0} | extra | more


def chat(
    client: openai.OpenAI, image: int | None, xargs: dict[str, Any] | None, **more: Any
) -> Any:
    return client.chat.completions.create(messages=messages(image), **options(xargs, **more))


def report(answer: Any) -> Any:
    """The `adaptvis` field of a response or a chunk; None if it has none."""
    return (answer.model_extra or {}).get("adaptvis")


def text(answer: Any) -> str:
    return answer.choices[0].message.content


def assert_same_report(mine: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(mine) == {"mode", "confidence", "alpha", "steered", "reason"}
    assert mine == {**other, "confidence": pytest.approx(other["confidence"], abs=1e-4)}


@pytest.mark.parametrize("way", WAYS)
def test_chat_answers_as_offline(
    client: openai.OpenAI, offline: dict[tuple[str, int], Any], way: str
) -> None:
    """Defaults, overrides and `mode: off`; all images at once, streamed and not."""
    xargs = WAYS[way][0]

    def streamed(image: int) -> tuple[str, list[Any]]:
        chunks = list(chat(client, image, xargs, stream=True))
        parts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        ends = [c for c in chunks if c.choices and c.choices[0].finish_reason]
        assert [report(c) for c in chunks if report(c)] == [report(ends[0])]
        return "".join(parts), report(ends[0])

    with ThreadPoolExecutor(len(IMAGES)) as pool:
        answers = list(pool.map(lambda image: chat(client, image, xargs), IMAGES))
        streams = list(pool.map(streamed, IMAGES))
    for image, answer, (stream_text, stream_report) in zip(IMAGES, answers, streams, strict=True):
        expected = offline[way, image]
        assert text(answer) == expected.outputs[0].text == stream_text
        assert_same_report(report(answer), expected.adaptvis)
        assert_same_report(stream_report, expected.adaptvis)
        assert answer.model_extra.get("kv_transfer_params") is None


def test_steering_matters(offline: dict[tuple[str, int], Any]) -> None:
    """The comparisons above would notice steering that is not there."""
    for way in ("default", "scaling", "layers"):
        changed = [
            offline[way, i].outputs[0].text != offline["off", i].outputs[0].text for i in IMAGES
        ]
        assert sum(changed) >= 2, way
    alphas = {offline["default", i].adaptvis["alpha"] for i in IMAGES}
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
    one.add(other, aggregate=True)
    assert one.adaptvis == {"mode": "scaling"}


def test_stream_with_usage(client: openai.OpenAI) -> None:
    """The usage chunk after the finish reason carries no report."""
    *_, end, usage = chat(client, 0, None, stream=True, stream_options={"include_usage": True})
    assert not usage.choices
    assert report(usage) is None
    assert report(end)["steered"]


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


def test_mixed_requests_at_once(client: openai.OpenAI, offline: dict[tuple[str, int], Any]) -> None:
    """More requests than the server runs at a time, of every way."""
    keys = [(way, image) for image in IMAGES for way in WAYS]
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda key: chat(client, key[1], WAYS[key[0]][0]), keys)
        for key, answer in zip(keys, answers, strict=True):
            assert text(answer) == offline[key].outputs[0].text, key
            assert_same_report(report(answer), offline[key].adaptvis)


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
    # Whole requests: missing partners, contradictions, unknown names.
    "alpha ": [{"mode": "scaling"}, {"mode": "off", "alpha": 2}, {"alpha": 2, "threshold": 0.1}],
    "alpha_low ": [{"alpha_low": 1, "mode": "scaling", "alpha": 2}],
    "preset ": [{"mode": "adaptive", "preset": "vsr"}, {"mode": "off", "preset": "coco"}],
    "threshold ": [{"treshold": 0.5}, {"mode": "scaling", "alpha": 1, "threshold": 0.5}],
    "alpha_hi": [{"alpha_hi": 2}],
    "zzz": [{"zzz": 1}, {"mode": "off", "zzz": 1}],
}  # fmt: skip


def test_every_field_has_bad_values() -> None:
    assert {f.name for f in fields(SteeringParams)} <= set(BAD)


def post(url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    """NaN and infinity go out as Python's JSON spells them; the server reads them."""
    head = {"content-type": "application/json"}
    return httpx.post(f"{url}/v1/{path}", content=json.dumps(body), headers=head, timeout=60)


@pytest.mark.parametrize("field", BAD)
def test_a_bad_parameter_is_refused(url: str, field: str) -> None:
    """HTTP 400 that names the field, for both endpoints, streamed and not."""
    asked = {"model": "tiny", "max_tokens": 2}
    chats = {**asked, "messages": [{"role": "user", "content": "?"}]}
    name = field.strip()
    for value in BAD[field]:
        given = value if isinstance(value, dict) and value else {name: value}
        if len(given) == 1 and name.startswith("alpha") and name != "alpha":
            given = {"mode": "adaptive", **given}
        elif len(given) == 1 and name in ("layers", "confidence", "confidence_decimals", "span"):
            given = {"mode": "adaptive", "preset": "coco", **given}
        xargs = {f"adaptvis_{k}": v for k, v in given.items()}
        for path, body in (("chat/completions", chats), ("completions", {**asked, "prompt": "?"})):
            for stream in (False, True):
                answer = post(url, path, {**body, "vllm_xargs": xargs, "stream": stream})
                assert answer.status_code == 400, (xargs, answer.text)
                error = answer.json()["error"]
                assert f"adaptvis_{name}" in error["message"], (xargs, error)
    assert healthy(url)


@pytest.mark.parametrize("key", ["adaptvis", "AdaptVis_mode", "adaptvis-alpha", "adaptvis_"])
def test_a_name_that_looks_like_ours_is_refused(url: str, key: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "?"}]}
    answer = post(url, "chat/completions", {**body, "vllm_xargs": {key: 1}})
    assert answer.status_code == 400
    assert key in answer.json()["error"]["message"]


def test_the_readme(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Its requests, by curl's body and by the openai client."""
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text()
    readme = readme.replace("llava-hf/llava-1.5-7b-hf", "tiny").replace(
        "http://localhost:8000", url
    )
    (shell,) = re.findall(r"```sh\n(curl .*?)```", readme, re.DOTALL)
    (python,) = re.findall(r"```python\n(import base64.*?)```", readme, re.DOTALL)
    for run in (["bash", "-c", shell], [sys.executable, "-P", "-c", python]):
        subprocess.run(run, cwd=root, check=True, timeout=60)
        printed = capfd.readouterr().out
        assert "adaptive" in printed
        assert "confidence" in printed


def test_beam_search_is_refused(url: str) -> None:
    """Its steps are requests of their own, whose last prompt token is a generated one."""
    body = {"model": "tiny", "use_beam_search": True, "n": 2, "max_tokens": 2}
    for path, asked in (
        ("chat/completions", {"messages": [{"role": "user", "content": "?"}]}),
        ("completions", {"prompt": "?"}),
    ):
        for xargs in ({"adaptvis_alpha": 2.0}, {"adaptvis_mode": "off"}, {}):
            answer = post(url, path, {**body, **asked, "vllm_xargs": xargs})
            assert answer.status_code == 400
            assert "beam search" in answer.json()["error"]["message"]


def test_it_still_answers(
    url: str, client: openai.OpenAI, offline: dict[tuple[str, int], Any]
) -> None:
    """After all that was refused."""
    assert healthy(url)
    assert text(chat(client, 2, None)) == offline["default", 2].outputs[0].text


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"alpha": -1}, r"additional_config\['adaptvis'\]: alpha must be"),
        ({"alpha": 2, "layers": "0-99"}, r"layers is '0-99', but the model has layers 0-3"),
    ],
)
def test_bad_defaults_stop_the_server(
    model: Path, tmp_path: Path, defaults: dict[str, Any], message: str
) -> None:
    """With a sentence that names the field."""
    done = subprocess.run(
        command(model, defaults, free_port()),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr[-3000:]
