"""Deterministic pictures, drawn on the spot: shapes, gradients, noise, of many sizes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("shapes", "gradient", "noise", "stripes", "scene")
SIZES = ((56, 56), (80, 60), (60, 96), (200, 150), (33, 47))


def make_image(seed: int) -> Image.Image:
    """An RGB picture; equal seeds give equal pixels, kinds and sizes alternate."""
    rng = np.random.default_rng(seed)
    size = SIZES[seed // len(KINDS) % len(SIZES)]
    return _DRAW[KINDS[seed % len(KINDS)]](rng, *size)


def make_images(count: int, *, first: int = 0) -> list[Image.Image]:
    """`count` different pictures."""
    return [make_image(first + i) for i in range(count)]


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _box(rng: np.random.Generator, width: int, height: int) -> list[float]:
    w, h = rng.uniform(0.2, 0.6) * width, rng.uniform(0.2, 0.6) * height
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return [x, y, x + w, y + h]


def _shapes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 5))):
        box = _box(rng, width, height)
        kind = rng.integers(3)
        if kind == 0:
            draw.rectangle(box, fill=_colour(rng))
        elif kind == 1:
            draw.ellipse(box, fill=_colour(rng))
        else:
            x0, y0, x1, y1 = box
            draw.polygon([(x0, y1), (x1, y1), ((x0 + x1) / 2, y0)], fill=_colour(rng))
    return image


def _gradient(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    start, end = (np.array(_colour(rng), dtype=float) for _ in range(2))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    t = (x * np.cos(angle) + y * np.sin(angle) + 1) / 2
    pixels = start + (end - start) * t[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    coarse = rng.integers(0, 256, (int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3))
    image = Image.fromarray(coarse.astype(np.uint8))
    return image.resize((width, height), Image.Resampling.NEAREST)


def _stripes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    colours = [_colour(rng) for _ in range(3)]
    step = int(rng.integers(4, 20))
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for i, x in enumerate(range(0, width + height, step)):
        draw.polygon(
            [(x, 0), (x + step, 0), (x + step - height, height), (x - height, height)],
            fill=colours[i % 3],
        )
    return image


def _scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Sky, ground, an object with a shadow, blur and grain: the statistics of a photograph."""
    image = _gradient(rng, width, height)
    draw = ImageDraw.Draw(image)
    horizon = rng.uniform(0.4, 0.8) * height
    draw.rectangle([0, horizon, width, height], fill=_colour(rng))
    x0, y0, x1, y1 = _box(rng, width, height)
    draw.ellipse([x0, y1 - (y1 - y0) / 6, x1, y1 + (y1 - y0) / 6], fill=(30, 30, 30))
    draw.ellipse([x0, y0, x1, y1], fill=_colour(rng))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), dtype=float)
    grain = rng.normal(0, 8, pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


_DRAW = {
    "shapes": _shapes,
    "gradient": _gradient,
    "noise": _noise,
    "stripes": _stripes,
    "scene": _scene,
}
