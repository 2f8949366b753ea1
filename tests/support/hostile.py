"""Bad pictures and random parameters for a server."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

from PIL import Image

from adaptvis_vllm.steering.fields import CONFIDENCES, MODES, PRESETS, RULES, SPANS
from support.http_server import data_uri

NAN, INF = float("nan"), float("inf")
LAYERS, HEADS = 4, 4  # of the tiny model


def _uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def _png(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + name + data
        out += struct.pack(">I", zlib.crc32(name + data))
    return out


def huge_image() -> str:
    """A real picture of 36 million pixels."""
    buffer = io.BytesIO()
    Image.new("L", (6_000, 6_000), 128).save(buffer, "PNG")
    return _uri(buffer.getvalue())


IMAGES_BAD: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "no picture": lambda: _uri(b"adaptvis"),
    "no base64": lambda: "data:image/png;base64,@@@@",
    "not base64": lambda: "data:image/png,%89PNG",
    "no data": lambda: "data:image/png;base64,",
    "cut off": lambda: data_uri(0)[:300],
    "says it is huge": lambda: _uri(_png(60_000, 60_000)),
    "says it is large": lambda: _uri(_png(9_000, 9_000)),
    "local file": lambda: "file:///etc/hostname",
    "other scheme": lambda: "ftp://127.0.0.1/picture.png",
    "no URL": lambda: "\x00\ud800",
}

VALID: dict[str, Callable[[random.Random], Any]] = {
    "mode": lambda r: r.choice(MODES),
    "alpha": lambda r: r.choice([0.5, 1, 2.0, 100, 1e-3]),
    "alpha_low": lambda r: r.choice([0.5, 1, 2.0]),
    "alpha_high": lambda r: r.choice([0.5, 1.5, 2]),
    "threshold": lambda r: r.choice([0, 0.4, 1, 0.999]),
    "layers": lambda r: r.choice(["all", "0-3", "1", [0, 2], ["1-2", 3], 3, "0,2"]),
    "heads": lambda r: r.choice(["0.0", "all", "1.*,2.0-3", ["0-3.1", "3.2"], "0.4", "4.0"]),
    "images": lambda r: r.choice(["0", 0, [0], "all"]),
    "videos": lambda r: r.choice(["0", "all", [0, 2]]),
    "rule": lambda r: r.choice(RULES),
    "confidence": lambda r: r.choice(CONFIDENCES),
    "confidence_decimals": lambda r: r.choice([0, 2, 6, "none"]),
    "span": lambda r: r.choice(SPANS),
    "preset": lambda r: r.choice(PRESETS),
    "candidates": lambda r: r.choice(["0.5,2", [0.5, 2], 1, [0.5], "0.5,1,2"]),
}
TOGETHER = (
    ("alpha",),
    ("mode",),
    ("preset",),
    ("alpha_low", "alpha_high", "threshold"),
    ("threshold",),
    ("layers", "span"),
    ("heads", "rule"),
    ("heads", "images"),
    ("rule", "videos"),
    ("candidates", "layers"),
    ("confidence", "confidence_decimals"),
    (),
)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, and the numbers that only Python's JSON has."""
    kind = rng.randrange(11 if depth < 3 else 8)
    if kind < 2:
        return rng.choice([0, 1, -1, 2, 7, 99, 2**63, -(2**70), 10**40])
    if kind < 4:
        return rng.choice([0.0, -0.0, 0.5, 1.5, -2.5, 1e-320, 1e308, NAN, INF, -INF])
    if kind < 6:
        alphabet = "adaptvis_0123-,. \x00\n\u00e9\u4e2d\U0001f600\ud800"
        return "".join(rng.choices(alphabet, k=rng.choice([0, 1, 3, 12, 400])))
    if kind == 6:
        return rng.choice([True, False])
    if kind == 7:
        return None
    if kind == 8:
        return {str(random_value(rng, 3)): random_value(rng, depth + 1) for _ in range(2)}
    return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]


def random_xargs(rng: random.Random) -> Any:
    """Valid, nearly valid, or anything at all."""
    kind = rng.random()
    if kind < 0.03:
        return random_value(rng)
    xargs: dict[str, Any] = {}
    for name in rng.choice(TOGETHER):
        xargs[f"adaptvis_{name}"] = VALID[name](rng)
    if rng.random() < 0.3:
        name = rng.choice(list(VALID))
        xargs[f"adaptvis_{name}"] = VALID[name](rng)
    if kind < 0.5:
        return xargs
    if kind < 0.7 and xargs:
        xargs[rng.choice(list(xargs))] = random_value(rng)
    elif kind < 0.85:
        xargs[f"adaptvis_{rng.choice(list(VALID))}"] = random_value(rng)
    elif kind < 0.93:
        xargs[rng.choice(["other", "Alpha", "x" * 300, ""])] = random_value(rng)
    else:
        xargs[rng.choice(["Adaptvis_alpha", "adaptvis", "ADAPTVIS_mode", "adaptvis_alphas"])] = 1
    return xargs


@cache
def xargs_type() -> Any:
    """How vLLM reads `vllm_xargs` before this package sees them."""
    from pydantic import TypeAdapter
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return TypeAdapter(ChatCompletionRequest.model_fields["vllm_xargs"].annotation)
