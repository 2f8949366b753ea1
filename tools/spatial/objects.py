"""Everyday objects, drawn: each in three styles, of which the third is held out of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1, in parts of the picture's size
HELD_OUT_STYLE = 2


@dataclass(frozen=True)
class Look:
    """How one object is drawn. flip: mirrored. outline: a dark line around every part."""

    main: Colour
    accent: Colour
    style: int
    flip: bool
    outline: bool


class Pen:
    """Draws in coordinates of a box: (0, 0) is its upper left corner, (1, 1) the lower right."""

    def __init__(self, draw: ImageDraw.ImageDraw, box: Box, size: tuple[int, int], look: Look):
        self.draw, self.look = draw, look
        self.x, self.y = box[0] * size[0], box[1] * size[1]
        self.w, self.h = (box[2] - box[0]) * size[0], (box[3] - box[1]) * size[1]
        self.unit = max(1.0, size[1] / 64)
        self.edge = shade(look.main, 0.35) if look.outline else None

    def at(self, x: float, y: float) -> tuple[float, float]:
        if self.look.flip:
            x = 1 - x
        return self.x + x * self.w, self.y + y * self.h

    def _span(self, x0: float, y0: float, x1: float, y1: float) -> Box:
        ax, ay = self.at(x0, y0)
        bx, by = self.at(x1, y1)
        return min(ax, bx), ay, max(ax, bx), by

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, round: float = 0):
        self.draw.rounded_rectangle(
            self._span(x0, y0, x1, y1),
            radius=round * min(self.w, self.h),
            fill=fill,
            outline=self.edge,
            width=int(self.unit),
        )

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: Colour):
        self.draw.ellipse(
            self._span(x0, y0, x1, y1), fill=fill, outline=self.edge, width=int(self.unit)
        )

    def ring(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, width: float):
        self.draw.ellipse(self._span(x0, y0, x1, y1), outline=fill, width=self._width(width))

    def poly(self, points: list[tuple[float, float]], fill: Colour):
        self.draw.polygon(
            [self.at(*p) for p in points], fill=fill, outline=self.edge, width=int(self.unit)
        )

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float):
        self.draw.line([self.at(*p) for p in points], fill=fill, width=self._width(width))

    def lower_half(self, x0: float, y0: float, x1: float, y1: float, fill: Colour):
        """The lower half of an ellipse, whose flat side lies at y0."""
        self.draw.chord(
            self._span(x0, 2 * y0 - y1, x1, y1),
            0,
            180,
            fill=fill,
            outline=self.edge,
            width=int(self.unit),
        )

    def upper_half(self, x0: float, y0: float, x1: float, y1: float, fill: Colour):
        """The upper half of an ellipse, whose flat side lies at y1."""
        self.draw.chord(
            self._span(x0, y0, x1, 2 * y1 - y0),
            180,
            360,
            fill=fill,
            outline=self.edge,
            width=int(self.unit),
        )

    def _width(self, part: float) -> int:
        return max(int(self.unit), round(part * min(self.w, self.h)))


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, towards white above."""
    if factor <= 1:
        r, g, b = (int(c * factor) for c in colour)
    else:
        r, g, b = (int(255 - (255 - c) / factor) for c in colour)
    return r, g, b


def mug(p: Pen, k: Look) -> None:
    p.ring(0.55, 0.22, 1.0, 0.78, shade(k.main, 0.75), 0.12)
    if k.style == 0:
        p.rect(0, 0, 0.75, 1, k.main, 0.1)
        p.oval(0, 0, 0.75, 0.18, shade(k.main, 0.5))
    elif k.style == 1:
        p.poly([(0, 0), (0.78, 0), (0.66, 1), (0.12, 1)], k.main)
        p.rect(0.09, 0.4, 0.7, 0.6, k.accent)
    else:
        p.rect(0, 0, 0.75, 1, k.main, 0.3)
        for x, y in ((0.2, 0.3), (0.5, 0.3), (0.35, 0.55), (0.2, 0.8), (0.5, 0.8)):
            p.oval(x - 0.07, y - 0.07, x + 0.07, y + 0.07, k.accent)


def bowl(p: Pen, k: Look) -> None:
    if k.style == 0:
        p.lower_half(0, 0.15, 1, 1, k.main)
        p.oval(0, 0, 1, 0.3, shade(k.main, 0.6))
    elif k.style == 1:
        p.rect(0.3, 0.8, 0.7, 1, shade(k.main, 0.7))
        p.lower_half(0, 0, 1, 0.9, k.main)
        p.rect(0.05, 0.08, 0.95, 0.25, k.accent)
    else:
        p.poly([(0, 0), (1, 0), (0.75, 1), (0.25, 1)], k.main)
        p.line([(0.08, 0.25), (0.92, 0.25)], k.accent, 0.15)


def lamp(p: Pen, k: Look) -> None:
    dark = shade(k.accent, 0.6)
    if k.style == 0:
        p.rect(0.45, 0.4, 0.55, 0.92, dark)
        p.rect(0.2, 0.9, 0.8, 1, dark)
        p.poly([(0.28, 0), (0.72, 0), (1, 0.5), (0, 0.5)], k.main)
    elif k.style == 1:
        p.rect(0.43, 0.5, 0.57, 0.95, dark)
        p.upper_half(0.15, 0.82, 0.85, 1, dark)
        p.oval(0.08, 0, 0.92, 0.58, shade(k.main, 1.8))
    else:
        p.line([(0.3, 0.95), (0.2, 0.5), (0.6, 0.15)], dark, 0.1)
        p.rect(0, 0.9, 0.65, 1, dark)
        p.poly([(0.5, 0), (0.75, 0.08), (1, 0.5), (0.4, 0.38)], k.main)


def dog(p: Pen, k: Look) -> None:
    dark = shade(k.main, 0.55)
    if k.style == 0:
        for x in (0.14, 0.3, 0.55, 0.68):
            p.rect(x, 0.6, x + 0.1, 1, shade(k.main, 0.8))
        p.line([(0.15, 0.5), (0.02, 0.2)], k.main, 0.1)
        p.rect(0.1, 0.4, 0.8, 0.75, k.main, 0.2)
        p.oval(0.62, 0.05, 0.95, 0.5, k.main)
        p.rect(0.82, 0.25, 1, 0.45, k.main)
        p.poly([(0.64, 0.1), (0.76, 0.1), (0.66, 0.45)], dark)
    elif k.style == 1:
        p.line([(0.3, 0.9), (0.02, 0.7)], k.main, 0.1)
        p.oval(0.15, 0.35, 0.7, 1, k.main)
        p.rect(0.55, 0.5, 0.7, 1, shade(k.main, 0.85))
        p.oval(0.4, 0, 0.85, 0.5, k.main)
        p.oval(0.7, 0.2, 1, 0.42, shade(k.main, 1.4))
        p.oval(0.36, 0.05, 0.52, 0.45, dark)
    else:
        for x in (0.12, 0.24, 0.62, 0.74):
            p.rect(x, 0.75, x + 0.08, 1, dark)
        p.oval(0.05, 0.42, 0.85, 0.88, k.main)
        p.poly([(0.66, 0.5), (0.72, 0.1), (1, 0.3), (0.88, 0.55)], k.main)
        p.poly([(0.68, 0.15), (0.76, 0), (0.8, 0.2)], dark)
        p.line([(0.08, 0.6), (0, 0.1)], k.main, 0.1)


def ball(p: Pen, k: Look) -> None:
    p.oval(0, 0, 1, 1, k.main)
    if k.style == 0:
        p.oval(0.2, 0.15, 0.5, 0.42, shade(k.main, 1.8))
    elif k.style == 1:
        p.rect(0.02, 0.4, 0.98, 0.62, k.accent)
    else:
        p.poly([(0.5, 0.25), (0.75, 0.45), (0.65, 0.75), (0.35, 0.75), (0.25, 0.45)], k.accent)


def box(p: Pen, k: Look) -> None:
    if k.style == 0:
        p.rect(0, 0, 1, 1, k.main)
        p.rect(0, 0, 1, 0.22, shade(k.main, 0.7))
        p.rect(0.4, 0, 0.6, 0.45, k.accent)
    elif k.style == 1:
        p.poly([(0, 0.25), (0.7, 0.25), (0.7, 1), (0, 1)], k.main)
        p.poly([(0, 0.25), (0.3, 0), (1, 0), (0.7, 0.25)], shade(k.main, 1.6))
        p.poly([(0.7, 0.25), (1, 0), (1, 0.75), (0.7, 1)], shade(k.main, 0.6))
    else:
        p.rect(0, 0.2, 1, 1, k.main)
        p.rect(0.42, 0.2, 0.58, 1, k.accent)
        p.poly([(0.5, 0.2), (0.2, 0), (0.2, 0.2)], k.accent)
        p.poly([(0.5, 0.2), (0.8, 0), (0.8, 0.2)], k.accent)


def bottle(p: Pen, k: Look) -> None:
    if k.style == 0:
        p.rect(0.35, 0, 0.65, 0.4, shade(k.main, 0.7))
        p.rect(0.08, 0.32, 0.92, 1, k.main, 0.2)
        p.rect(0.08, 0.55, 0.92, 0.8, k.accent)
    elif k.style == 1:
        p.rect(0.38, 0.06, 0.62, 0.6, k.main)
        p.rect(0.33, 0, 0.67, 0.1, k.accent)
        p.oval(0, 0.4, 1, 1, k.main)
    else:
        p.poly([(0.36, 0.1), (0.64, 0.1), (0.64, 0.4), (1, 1), (0, 1), (0.36, 0.4)], k.main)
        p.oval(0.3, 0, 0.7, 0.15, k.accent)


def plant(p: Pen, k: Look) -> None:
    leaf = (50, 130, 60) if sum(k.main) % 2 else (90, 150, 40)
    if k.style == 0:
        p.line([(0.5, 0.7), (0.5, 0.2)], shade(leaf, 0.7), 0.08)
        for x, y in ((0.2, 0.35), (0.8, 0.35), (0.32, 0.12), (0.68, 0.12)):
            p.oval(x - 0.2, y - 0.13, x + 0.2, y + 0.13, leaf)
        p.poly([(0.2, 0.62), (0.8, 0.62), (0.7, 1), (0.3, 1)], k.main)
    elif k.style == 1:
        p.rect(0.36, 0, 0.64, 0.75, leaf, 0.14)
        p.rect(0.08, 0.2, 0.24, 0.5, leaf, 0.08)
        p.rect(0.08, 0.4, 0.5, 0.52, leaf)
        p.rect(0.76, 0.1, 0.92, 0.4, leaf, 0.08)
        p.rect(0.5, 0.3, 0.92, 0.42, leaf)
        p.rect(0.18, 0.68, 0.82, 1, k.main)
    else:
        for x in (0.02, 0.25, 0.5, 0.75, 0.98):
            p.poly([(0.42, 0.65), (x, 0.05 + abs(x - 0.5) * 0.5), (0.58, 0.65)], leaf)
        p.lower_half(0.1, 0.6, 0.9, 1, k.main)


def hat(p: Pen, k: Look) -> None:
    if k.style == 0:
        p.upper_half(0.22, 0, 0.78, 0.85, k.main)
        p.oval(0, 0.65, 1, 1, shade(k.main, 0.8))
        p.rect(0.22, 0.6, 0.78, 0.74, k.accent)
    elif k.style == 1:
        p.rect(0.22, 0, 0.78, 0.85, k.main)
        p.rect(0, 0.82, 1, 1, shade(k.main, 0.8), 0.08)
        p.rect(0.22, 0.58, 0.78, 0.8, k.accent)
    else:
        p.upper_half(0, 0, 0.7, 0.9, k.main)
        p.poly([(0.3, 0.72), (1, 0.8), (1, 0.95), (0, 0.95)], k.accent)


def boot(p: Pen, k: Look) -> None:
    sole = shade(k.main, 0.45)
    if k.style == 0:
        p.rect(0.1, 0, 0.5, 0.9, k.main)
        p.rect(0.1, 0.58, 0.98, 0.92, k.main, 0.15)
        p.rect(0.06, 0.88, 1, 1, sole)
    elif k.style == 1:
        p.poly([(0.08, 0), (0.55, 0), (0.5, 0.5), (1, 0.72), (1, 0.95), (0.08, 0.95)], k.main)
        p.rect(0.05, 0, 0.58, 0.16, k.accent)
        p.rect(0.05, 0.9, 1, 1, sole)
    else:
        p.poly([(0.15, 0), (0.5, 0), (0.55, 0.6), (1, 0.85), (0.2, 0.8), (0.05, 0.6)], k.main)
        p.rect(0.08, 0.7, 0.2, 1, sole)
        p.poly([(0.5, 0.85), (1, 0.85), (1, 1), (0.5, 0.95)], sole)


SMALL: dict[str, tuple[Callable[[Pen, Look], None], float]] = {
    # drawing, width / height
    "mug": (mug, 1.1),
    "bowl": (bowl, 1.6),
    "lamp": (lamp, 0.7),
    "dog": (dog, 1.3),
    "ball": (ball, 1.0),
    "box": (box, 1.1),
    "bottle": (bottle, 0.5),
    "plant": (plant, 0.8),
    "hat": (hat, 1.5),
    "boot": (boot, 1.0),
}
