"""Furniture that other objects stand on or under; the third style is held out of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spatial.objects import Look, Pen, shade


def table(p: Pen, k: Look) -> None:
    leg = shade(k.main, 0.7)
    if k.style == 0:
        p.rect(0.06, 0.1, 0.14, 1, leg)
        p.rect(0.86, 0.1, 0.94, 1, leg)
    elif k.style == 1:
        p.rect(0.02, 0.1, 0.12, 1, leg)
        p.rect(0.88, 0.1, 0.98, 1, leg)
        p.rect(0.1, 0.1, 0.9, 0.2, k.accent)
    else:
        for x in (0.02, 0.82):
            p.line([(x, 1), (x + 0.16, 0.1)], leg, 0.05)
            p.line([(x + 0.16, 1), (x, 0.1)], leg, 0.05)
    p.rect(0, 0, 1, 0.12, k.main)


def chair(p: Pen, k: Look) -> None:
    leg = shade(k.main, 0.7)
    if k.style == 0:
        p.rect(0, 0, 0.14, 1, leg)
        p.rect(0.86, 0.5, 1, 1, leg)
    elif k.style == 1:
        p.rect(0, 0, 1, 0.14, k.accent)
        for x in (0, 0.3, 0.6, 0.9):
            p.rect(x, 0.1, x + 0.1, 0.5, k.accent)
        p.rect(0.02, 0.5, 0.12, 1, leg)
        p.rect(0.88, 0.5, 0.98, 1, leg)
    else:
        p.rect(0.05, 0, 0.95, 0.5, k.accent, 0.3)
        p.line([(0.1, 0.5), (0, 1)], leg, 0.1)
        p.line([(0.9, 0.5), (1, 1)], leg, 0.1)
    p.rect(0, 0.48, 1, 0.6, k.main)


def stool(p: Pen, k: Look) -> None:
    leg = shade(k.main, 0.65)
    if k.style == 0:
        p.line([(0.2, 0.1), (0.05, 1)], leg, 0.1)
        p.line([(0.8, 0.1), (0.95, 1)], leg, 0.1)
        p.rect(0, 0, 1, 0.16, k.main, 0.08)
    elif k.style == 1:
        p.rect(0.05, 0.1, 0.16, 1, leg)
        p.rect(0.84, 0.1, 0.95, 1, leg)
        p.oval(0, 0, 1, 0.18, k.accent)
    else:
        p.rect(0.02, 0.12, 0.14, 1, leg)
        p.rect(0.86, 0.12, 0.98, 1, leg)
        p.rect(0.02, 0.9, 0.98, 1, leg)
        p.rect(0, 0, 1, 0.18, k.accent, 0.1)


def shelf(p: Pen, k: Look) -> None:
    if k.style == 0:
        p.poly([(0.12, 0.4), (0.2, 0.4), (0.12, 1)], shade(k.main, 0.6))
        p.poly([(0.8, 0.4), (0.88, 0.4), (0.88, 1)], shade(k.main, 0.6))
        p.rect(0, 0, 1, 0.5, k.main)
    elif k.style == 1:
        p.rect(0, 0, 1, 0.45, k.main)
        p.rect(0.05, 0.45, 0.95, 1, shade(k.main, 0.6))
    else:
        p.rect(0, 0, 1, 0.7, k.accent)
        for x in (0.1, 0.5, 0.9):
            p.oval(x - 0.04, 0.6, x + 0.04, 1, shade(k.accent, 0.5))


@dataclass(frozen=True)
class Furniture:
    """width, height: ranges, in parts of the picture. surface, underside: in parts of the
    height, where things stand and below which they fit; inner: in parts of the width."""

    draw: Callable[[Pen, Look], None]
    width: tuple[float, float]
    height: tuple[float, float]
    surface: float
    underside: float
    inner: float


FURNITURE = {
    "table": Furniture(table, (0.4, 0.54), (0.3, 0.44), 0.0, 0.2, 0.72),
    "chair": Furniture(chair, (0.24, 0.34), (0.44, 0.58), 0.48, 0.6, 0.74),
    "stool": Furniture(stool, (0.24, 0.34), (0.26, 0.38), 0.0, 0.18, 0.7),
    "shelf": Furniture(shelf, (0.36, 0.54), (0.07, 0.11), 0.0, 1.0, 1.0),
}
