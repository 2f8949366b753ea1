"""Shares of attention on the image and in boxes, by layer and head: what is kept of a map.

With w the attention weights of a head (the softmax over all keys) on the image positions p, and f
the part of a position's rectangle that lies in the union of the objects' boxes:

- image: the sum of all w. The rest of 1 lies on text.
- boxes: the sum of w f.
- inside: boxes over the sum of w of positions that have a rectangle: of the attention on places of
  the picture, the part in the boxes, however much that attention is.
- even: the mean of f over positions that have a rectangle: `inside` of a head that looks everywhere
  alike. Big boxes have a big one.
- lift: inside over even; 1 is no preference, whatever the size of the boxes.

A head that gives all positions nothing prefers none: its inside is even.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.diagnosis.boxes import Boxes
from adaptvis_vllm.maps.maps import Maps

Array = NDArray[np.float32]
IMAGE, BOXES, INSIDE, LIFT = MEASURES = ("image", "boxes", "inside", "lift")
TITLES = {
    IMAGE: "share on the image",
    BOXES: "share in the boxes",
    INSIDE: "part of the picture's share in the boxes",
    LIFT: "lift of the boxes",
}


@dataclass(frozen=True)
class Inside:
    """fraction: [P] float64, f above; 0 where a position has no rectangle. placed: [P] bool, where
    it has one."""

    fraction: NDArray[np.float64]
    placed: NDArray[np.bool_]

    @property
    def even(self) -> float:
        return float(self.fraction[self.placed].mean()) if self.placed.any() else 0.0


def inside(maps: Maps, boxes: Boxes) -> Inside | None:
    """None where the geometry is not known, or no position sees anything of the boxes."""
    if maps.unknown:
        return None
    sides = maps.boxes.astype(np.float64)
    with np.errstate(invalid="ignore"):
        placed = (sides[:, 2] > sides[:, 0]) & (sides[:, 3] > sides[:, 1])
    fraction = np.zeros(len(sides))
    for number, objects in enumerate(boxes.pictures):
        own = placed & (maps.image == number)
        fraction[own] = fractions(sides[own], objects)
    found = Inside(fraction, placed)
    return found if found.even > 0 else None


def shares(maps: Maps, which: str, seen: Inside | None) -> Mapping[str, Array]:
    """measure -> [L, H] float32; of MEASURES, image alone where nothing is known of boxes.

    which: "before" or "after", as of `Maps.weights`.
    """
    weights = maps.weights(which)
    out = {IMAGE: weights.sum(-1)}
    if seen is not None:
        in_boxes = weights @ seen.fraction.astype(np.float32)
        placed = weights[..., seen.placed].sum(-1)
        even = np.full_like(placed, seen.even)
        part = np.divide(in_boxes, placed, out=even, where=placed > 0)
        out |= {BOXES: in_boxes, INSIDE: part, LIFT: part / np.float32(seen.even)}
    return out


def fractions(rectangles: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P]: the part of each rectangle [P, 4] that lies in the union of boxes [N, 4]."""
    out = np.zeros(len(rectangles))
    area = np.prod(rectangles[:, 2:] - rectangles[:, :2], axis=1)
    for part in disjoint(boxes):
        low = np.maximum(rectangles[:, :2], part[:2])
        high = np.minimum(rectangles[:, 2:], part[2:])
        out += np.prod(np.maximum(high - low, 0), axis=1)
    return np.minimum(out / area, 1.0)


def disjoint(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M, 4] rectangles without overlap, of the same union as boxes [N, 4]: in each strip
    between two edges the runs that are covered."""
    ys = np.unique(boxes[:, 1::2])
    out = []
    for y0, y1 in pairwise(ys):
        rows = boxes[(boxes[:, 1] <= y0) & (boxes[:, 3] >= y1)]
        x = -np.inf
        for x0, x1 in sorted(map(tuple, rows[:, ::2])):
            if x1 > x:
                out.append([max(x0, x), y0, x1, y1])
                x = x1
    return np.array(out, float).reshape(-1, 4)
