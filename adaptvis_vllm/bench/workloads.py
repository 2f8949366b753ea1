"""Seeded requests with pictures drawn on the spot."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

QUESTION = "Where is the mug?"
ANSWER = "The mug is on the table."


@dataclass(frozen=True)
class Workload:
    """images: per request. width, height: of each, in pixels. max_tokens: every answer has
    just as many. turns: questions of one conversation, each sent after the answer to the one
    before. shared: all requests ask about the same pictures."""

    name: str
    images: int = 1
    width: int = 336
    height: int = 336
    max_tokens: int = 16
    turns: int = 1
    shared: bool = False


WORKLOADS = {
    w.name: w
    for w in (
        Workload("short"),
        Workload("multi-turn", turns=3),
        Workload("images", images=3),
        Workload("long", max_tokens=128),
        Workload("shared", shared=True),
    )
}


def workload(name: str, **changes: Any) -> Workload:
    """By name, with what is not None in `changes` changed; ValueError for a wrong value."""
    if name not in WORKLOADS:
        raise ValueError(f"no workload {name!r}; known are {', '.join(WORKLOADS)}")
    chosen = replace(WORKLOADS[name], **{k: v for k, v in changes.items() if v is not None})
    for field in ("images", "width", "height", "max_tokens", "turns"):
        if getattr(chosen, field) < 1:
            raise ValueError(f"{field} must be >= 1, not {getattr(chosen, field)}")
    return chosen


@dataclass(frozen=True)
class Task:
    """One conversation. questions: its turns. The answers that later turns quote are canned,
    so that every system is asked the same. images: shown with the first question."""

    questions: tuple[str, ...]
    images: tuple[Image.Image, ...]
    max_tokens: int

    def messages(self, turn: int, urls: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Chat messages of one turn. urls: of the images, for HTTP; None: as PIL images."""
        if urls is None:
            pictures = [{"type": "image_pil", "image_pil": i} for i in self.images]
        else:
            pictures = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
        out: list[dict[str, Any]] = []
        for number in range(turn + 1):
            text = {"type": "text", "text": self.questions[number]}
            out.append({"role": "user", "content": [*pictures, text] if not number else [text]})
            if number < turn:
                out.append({"role": "assistant", "content": [{"type": "text", "text": ANSWER}]})
        return out

    def urls(self) -> list[str]:
        """The images as data URIs."""
        out = []
        for image in self.images:
            data = io.BytesIO()
            image.save(data, "PNG", compress_level=1)
            out.append("data:image/png;base64," + base64.b64encode(data.getvalue()).decode())
        return out


def tasks(chosen: Workload, count: int, seed: int) -> list[Task]:
    """`count` conversations; other seeds share no picture with them."""
    rng = np.random.default_rng(seed)
    shared = _pictures(rng, chosen) if chosen.shared else None
    return [
        Task(
            tuple(f"{seed}.{number}.{turn}: {QUESTION}" for turn in range(chosen.turns)),
            shared or _pictures(rng, chosen),
            chosen.max_tokens,
        )
        for number in range(count)
    ]


def _pictures(rng: np.random.Generator, chosen: Workload) -> tuple[Image.Image, ...]:
    out = []
    for _ in range(chosen.images):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        out.append(small.resize((chosen.width, chosen.height), Image.Resampling.BICUBIC))
    return tuple(out)


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which requests arrive, a Poisson process."""
    rng, now, out = random.Random(seed), 0.0, []
    for _ in range(count):
        out.append(now)
        now += rng.expovariate(rate)
    return out
