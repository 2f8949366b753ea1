"""Where things stand in a picture."""

from __future__ import annotations

from random import Random

from spatial.furniture import FURNITURE
from spatial.objects import SMALL, Box

RELATIONS = ("left", "right", "on", "under")
INVERSE = {"left": "right", "right": "left", "on": "under", "under": "on"}
MARGIN = 0.02


def place_pair(
    rng: Random, small: str, furniture: str, relation: str, *, shifted: bool
) -> tuple[Box, Box]:
    """Boxes of a small object and of the furniture that it is left, right, on or under."""
    kind = FURNITURE[furniture]
    scale = rng.uniform(0.7, 0.9) if shifted else rng.uniform(0.88, 1.08)
    w, h = rng.uniform(*kind.width) * scale, rng.uniform(*kind.height) * scale
    sw, sh = small_size(rng, small, scale)
    if relation in ("left", "right"):
        gap = rng.uniform(0.08, 0.22) if shifted else rng.uniform(0.01, 0.12)
        x = -gap - sw if relation == "left" else w + gap
        if furniture == "shelf":
            y = h / 2 - sh / 2 + rng.uniform(-0.05, 0.05)
        elif shifted:
            y = rng.uniform(0, max(h - sh, 0.01))
        else:
            y = h - sh - rng.uniform(-0.04, 0.08)
    elif relation == "on":
        reach = 0.35 if shifted else 0.3
        x = w / 2 - sw / 2 + rng.uniform(-reach, reach) * max(w - 0.6 * sw, 0.05)
        y = h * kind.surface - sh + 0.015
    else:
        room = w * kind.inner
        if kind.underside < 1:
            fit = min(1.0, room / sw, 0.97 * h * (1 - kind.underside) / sh)
            sw, sh = sw * fit, sh * fit
            y = h - sh
        else:
            y = h + rng.uniform(0.02, 0.12)
        x = w / 2 - sw / 2 + rng.uniform(-0.5, 0.5) * max(room - sw, 0)
    return _move(rng, (x, y, x + sw, y + sh), (0.0, 0.0, w, h))


def small_size(rng: Random, name: str, scale: float) -> tuple[float, float]:
    side = rng.uniform(0.17, 0.25) * scale
    aspect = SMALL[name][1]
    return side * aspect**0.5, side / aspect**0.5


def place_free(rng: Random, name: str, taken: list[Box]) -> Box | None:
    """A box for a distractor that touches none of those taken; None if there is no room."""
    for attempt in range(60):
        shrink = 1.0 - 0.4 * attempt / 60
        if name in FURNITURE:
            kind = FURNITURE[name]
            w, h = rng.uniform(*kind.width) * 0.8, rng.uniform(*kind.height) * 0.8
        else:
            w, h = small_size(rng, name, 1.0)
        w, h = w * shrink, h * shrink
        x, y = rng.uniform(MARGIN, 1 - MARGIN - w), rng.uniform(MARGIN, 1 - MARGIN - h)
        new = (x, y, x + w, y + h)
        if not any(_overlap(new, box) for box in taken):
            return new
    return None


def _overlap(a: Box, b: Box, gap: float = 0.02) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _move(rng: Random, a: Box, b: Box) -> tuple[Box, Box]:
    """Both boxes at a random place inside the picture, smaller if they do not fit."""
    x0, y0 = min(a[0], b[0]), min(a[1], b[1])
    width, height = max(a[2], b[2]) - x0, max(a[3], b[3]) - y0
    fit = min(1.0, (1 - 2 * MARGIN) / max(width, height))
    dx = rng.uniform(MARGIN, 1 - MARGIN - width * fit)
    dy = rng.uniform(MARGIN, 1 - MARGIN - height * fit)

    def moved(box: Box) -> Box:
        return (
            (box[0] - x0) * fit + dx,
            (box[1] - y0) * fit + dy,
            (box[2] - x0) * fit + dx,
            (box[3] - y0) * fit + dy,
        )

    return moved(a), moved(b)
