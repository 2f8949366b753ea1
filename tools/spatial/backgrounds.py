"""Backgrounds: plain, gradient, room in training; tiles, stripes, outdoors are held out."""

from __future__ import annotations

import colorsys
from random import Random

from PIL import Image, ImageDraw

from spatial.objects import Colour, shade


def hsv(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return r, g, b


def distance(a: Colour, b: Colour) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def background(rng: Random, size: tuple[int, int], *, shifted: bool) -> tuple[Image.Image, Colour]:
    """The picture, and a colour that stands for it."""
    base = _wall(rng)
    kind = rng.choice(_SHIFTED if shifted else _FAMILIAR)
    return kind(rng, size, base), base


def _wall(rng: Random) -> Colour:
    if rng.random() < 0.3:
        grey = rng.randint(30, 245)
        return grey, grey, grey
    return hsv(rng.random(), rng.uniform(0.1, 0.5), rng.uniform(0.35, 1.0))


def _plain(rng: Random, size: tuple[int, int], base: Colour) -> Image.Image:
    return Image.new("RGB", size, base)


def _gradient(rng: Random, size: tuple[int, int], base: Colour) -> Image.Image:
    ends = Image.new("RGB", (1, 2))
    ends.putpixel((0, 0), base)
    ends.putpixel((0, 1), shade(base, rng.choice((0.7, 1.6))))
    # Steps of 8 rows: smooth enough, and the file stays small.
    return ends.resize((1, size[1] // 16), Image.Resampling.BILINEAR).resize(size)


def _room(rng: Random, size: tuple[int, int], base: Colour) -> Image.Image:
    image = Image.new("RGB", size, base)
    floor = shade(base, rng.uniform(0.6, 0.85)) if rng.random() < 0.6 else _wall(rng)
    top = round(rng.uniform(0.45, 0.85) * size[1])
    ImageDraw.Draw(image).rectangle((0, top, *size), fill=floor)
    return image


def _tiles(rng: Random, size: tuple[int, int], base: Colour) -> Image.Image:
    image = Image.new("RGB", size, base)
    draw = ImageDraw.Draw(image)
    other, step = shade(base, 0.85), size[1] // rng.randint(4, 7)
    for row in range(size[1] // step + 1):
        for column in range(row % 2, size[0] // step + 1, 2):
            x, y = column * step, row * step
            draw.rectangle((x, y, x + step - 1, y + step - 1), fill=other)
    return image


def _stripes(rng: Random, size: tuple[int, int], base: Colour) -> Image.Image:
    image = Image.new("RGB", size, base)
    draw = ImageDraw.Draw(image)
    other, step = shade(base, rng.choice((0.85, 1.4))), size[1] // rng.randint(5, 9)
    slant = rng.choice((0, step, -step)) * 3
    for x in range(-abs(slant), size[0] + abs(slant), step):
        ends = [(x, 0), (x + step // 2, 0), (x + step // 2 + slant, size[1]), (x + slant, size[1])]
        draw.polygon(ends, fill=other)
    return image


def _outdoors(rng: Random, size: tuple[int, int], base: Colour) -> Image.Image:
    width, height = size
    image = Image.new("RGB", size, hsv(0.57, rng.uniform(0.2, 0.5), rng.uniform(0.8, 1)))
    draw = ImageDraw.Draw(image)
    x, hill = rng.uniform(0, 1) * width, rng.uniform(0.45, 0.7) * height
    draw.ellipse((x - width, hill, x + width, hill + height), fill=hsv(0.3, 0.4, 0.7))
    top = round(rng.uniform(0.65, 0.85) * height)
    draw.rectangle((0, top, *size), fill=hsv(rng.uniform(0.2, 0.4), 0.5, rng.uniform(0.4, 0.7)))
    return image


_FAMILIAR = (_plain, _gradient, _room)
_SHIFTED = (_tiles, _stripes, _outdoors)
