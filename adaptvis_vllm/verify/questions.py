"""Questions about drawn scenes, for any model with a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from adaptvis_vllm.steering.params import SteeringParams

COLOURS = {"red": (205, 50, 45), "blue": (50, 80, 200), "green": (50, 150, 70)}
SHAPES = ("square", "disc")
TEXT = (
    "Where is the {0} {1} in relation to the {2} {3}? Answer with left, right, on or under.",
    "Is the {0} {1} left or right of the {2} {3}?",
    "Is the {0} {1} above or below the {2} {3}?",
)
PIXELS = 224


@dataclass(frozen=True)
class Ask:
    """One request: pictures, a text, and how it is steered."""

    images: tuple[Image.Image, ...]
    text: str
    steering: SteeringParams | None = None

    def messages(self, *, inline: bool) -> list[dict[str, Any]]:
        """Chat messages. inline: with the pictures, as vLLM's `LLM.chat` takes them; else with
        places for them, as transformers' templates do."""
        pictures: list[dict[str, Any]] = [
            {"type": "image_pil", "image_pil": image} if inline else {"type": "image"}
            for image in self.images
        ]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": self.text}]}]


def draw(count: int, seed: int = 0, images: int = 1) -> list[Ask]:
    """Unsteered questions, each about pictures of its own. images: of a question."""
    rng = np.random.default_rng(seed)
    return [_question(rng, images) for _ in range(count)]


def steered(asks: Sequence[Ask], steering: SteeringParams | None) -> list[Ask]:
    """The same questions, steered so."""
    return [Ask(ask.images, ask.text, steering) for ask in asks]


def _question(rng: np.random.Generator, images: int) -> Ask:
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    one, other = rng.choice(SHAPES, 2)
    text = TEXT[rng.integers(len(TEXT))].format(first, one, second, other)
    pictures = [_scene(rng, ((first, one), (second, other))) for _ in range(images)]
    return Ask(tuple(pictures), text)


def _scene(rng: np.random.Generator, things: Sequence[tuple[str, str]]) -> Image.Image:
    picture = Image.new("RGB", (PIXELS, PIXELS), tuple(rng.integers(190, 250, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for colour, shape in things:
        size = int(rng.integers(PIXELS // 6, PIXELS // 3))
        x, y = rng.integers(0, PIXELS - size, 2).tolist()
        paint = pen.rectangle if shape == "square" else pen.ellipse
        paint((x, y, x + size, y + size), fill=COLOURS[colour])
    return picture
