"""A real server and how users ask it: the openai client and plain HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from checkpoints.images import make_image

from adaptvis_vllm import AdaptVis, Off, ScalingVis, SteeringParams
from adaptvis_vllm.bench.serve import free_port
from support.commands import here, words
from support.waiting import HANG_S, until

# The confidences of the tiny model lie on both sides of the threshold.
LOW, HIGH, THRESHOLD = 0.5, 2.0, 0.2
DEFAULTS = AdaptVis(LOW, HIGH, THRESHOLD)
OFF = {"adaptvis_mode": "off"}
IMAGES = range(6)
QUESTION = "Where is the red cat?"
# xargs of a request, and what they come to together with the server's defaults.
WAYS: dict[str, tuple[dict[str, Any] | None, SteeringParams]] = {
    "default": (None, DEFAULTS),
    "off": (OFF, Off()),
    "scaling": ({"adaptvis_alpha": 3.0}, ScalingVis(3.0)),
    "layers": ({"adaptvis_alpha": 3.0, "adaptvis_layers": "1-2"}, ScalingVis(3.0, layers="1-2")),
    "other threshold": ({"adaptvis_threshold": 0.0}, AdaptVis(LOW, HIGH, 0.0)),
    "margin": (
        {"adaptvis_confidence": "margin", "adaptvis_confidence_decimals": 2},
        AdaptVis(LOW, HIGH, THRESHOLD, confidence="margin", confidence_decimals=2),
    ),
}
ENGINE = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"),
    *("--block-size", "32", "--kv-cache-memory-bytes", str(64 * 2**20)),
)
# One for all requests, each with a connection of its own: a client reads the world's certificates
# as it is made, which takes longer than most answers.
HTTP = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=HANG_S)
# Two API server processes: what is counted must be counted across them.
SERVER = (
    *("--alpha-low", str(LOW), "--alpha-high", str(HIGH), "--threshold", str(THRESHOLD)),
    *("--api-server-count", "2", "--limit-mm-per-prompt", '{"image": 3}'),
)


def serve_command(model: Path, port: int, *options: str) -> list[str]:
    return [
        *words("serve", model),
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *(*ENGINE, *options),
    ]


def environment() -> dict[str, str]:
    """On a CPU vLLM puts even a single rank in a process of its own, unless the first one is 0."""
    return os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def running(folder: Path, model: Path, *options: str) -> Iterator[str]:
    """Base URL of a server that lives as long as the block."""
    port = free_port()
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            serve_command(model, port, *options),
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    base = f"http://127.0.0.1:{port}"
    try:
        until(lambda: healthy(base), process, log)
        yield base
    finally:
        stop(process)


def healthy(base: str) -> bool:
    try:
        return HTTP.get(f"{base}/health", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its children."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(HANG_S)


def generate_rows(folder: Path, model: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(way, image) -> the row that `adaptvis generate` answers."""
    keys = [(way, image) for way in WAYS for image in IMAGES]
    for image in IMAGES:
        make_image(image).save(folder / f"{image}.png")
    rows = [
        {
            "id": number,
            "image": f"{image}.png",
            "question": QUESTION,
            "max_tokens": 8,
            "adaptvis": {
                name.removeprefix("adaptvis_"): value
                for name, value in WAYS[way][1].extra_args().items()
            },
        }
        for number, (way, image) in enumerate(keys)
    ]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ("--input", folder / "in.jsonl", "--output", folder / "out.jsonl")
    done = here("generate", "--model", model, *files, *ENGINE)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (folder / "out.jsonl").open()]
    return dict(zip(keys, answers, strict=True))


def data_uri(image: int) -> str:
    buffer = io.BytesIO()
    make_image(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def messages(image: int | None, text: str = QUESTION) -> list[Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": data_uri(image)}})
    return [{"role": "user", "content": parts}]


def options(xargs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    extra = {"return_token_ids": True} | ({} if xargs is None else {"vllm_xargs": xargs})
    return {"model": "tiny", "max_tokens": 8, "temperature": 0, "extra_body": extra} | more


def chat(
    client: openai.OpenAI, image: int | None, xargs: dict[str, Any] | None, **more: Any
) -> Any:
    return client.chat.completions.create(messages=messages(image), **options(xargs, **more))


def report(answer: Any) -> Any:
    """The `adaptvis` field of a response or a chunk; None if it has none."""
    return (answer.model_extra or {}).get("adaptvis")


def text(answer: Any) -> str:
    return answer.choices[0].message.content


def token_ids(choice: Any) -> list[int]:
    return (choice.model_extra or {}).get("token_ids") or []


def assert_same_report(mine: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(mine) == {"mode", "confidence", "alpha", "steered", "reason"}
    assert mine == {**other, "confidence": pytest.approx(other["confidence"], abs=1e-4)}


def post(url: str, path: str, body: Any, **more: Any) -> httpx.Response:
    """NaN and infinity go out as Python's JSON spells them; the server reads them."""
    head = {"content-type": "application/json"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTP.post(f"{url}{path}", content=content, headers=head, **more)


def assert_refused(answer: httpx.Response, field: str, status: Sequence[int] = (400,)) -> None:
    """vLLM's error shape, with the field's name in it."""
    assert answer.status_code in status, answer.text
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["code"] == answer.status_code
    assert field in error["message"], error
