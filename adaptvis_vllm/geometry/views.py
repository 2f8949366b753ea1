"""Rasters that a vision tower sees, as rectangles of the picture that they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Pictures' pixels as edges: pixel i is the interval from i to i + 1.
Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """A picture's width and height in pixels as the user gave it, or those of a video's frames.

    frames: how many the model's processor is given; 0 for a picture.
    """

    width: int
    height: int
    frames: int = 0

    def __str__(self) -> str:
        frames = f"{self.frames} frames of " if self.frames else ""
        return f"{frames}{self.width} x {self.height} pixels"

    def like(self) -> npt.NDArray[np.uint8]:
        """[3, height, width] that takes no memory: for functions that ask an image its size."""
        return np.broadcast_to(np.uint8(0), (3, self.height, self.width))


@dataclass(frozen=True)
class View:
    """A raster of width x height pixels.

    left, top, right, bottom: where its outer edges lie, in pixels of the picture; beyond the
    picture's edges where the raster is padded.
    """

    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def whole(cls, size: Size, width: int, height: int) -> View:
        """The whole picture, stretched to width x height."""
        return cls(width, height, 0, 0, size.width, size.height)

    def part(self, x: int, y: int, width: int, height: int) -> View:
        """A crop, or a larger canvas with this view on it: x and y may be negative."""
        across = (self.right - self.left) / self.width
        down = (self.bottom - self.top) / self.height
        return View(
            width,
            height,
            self.left + x * across,
            self.top + y * down,
            self.left + (x + width) * across,
            self.top + (y + height) * down,
        )

    def resized(self, width: int, height: int) -> View:
        """The same rectangle in another number of pixels."""
        return View(width, height, self.left, self.top, self.right, self.bottom)

    def cells(self, width: int, height: int) -> Boxes:
        """[rows, columns, 4]: its cells of width x height pixels; what is left over has none."""
        columns, rows = self.width // width, self.height // height
        xs = self.left + np.arange(columns + 1) * width * (self.right - self.left) / self.width
        ys = self.top + np.arange(rows + 1) * height * (self.bottom - self.top) / self.height
        boxes = np.empty((rows, columns, 4))
        boxes[..., 0], boxes[..., 2] = xs[:-1], xs[1:]
        boxes[..., 1], boxes[..., 3] = ys[:-1, None], ys[1:, None]
        return boxes


def split(view: View, width: int, height: int) -> list[View]:
    """Its tiles of width x height pixels, row by row."""
    return [
        view.part(x, y, width, height)
        for y in range(0, view.height, height)
        for x in range(0, view.width, width)
    ]


def joined(tiles: list[Boxes], columns: int) -> Boxes:
    """[rows, columns, 4]: the cells of tiles, `columns` of them side by side, as one grid."""
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def interpolated(boxes: Boxes, rows: int, columns: int) -> Boxes:
    """[rows, columns, 4]: of cells that are interpolated bilinearly from a grid of others.

    Each is the hull of the cells that it is made of, so neighbours may overlap, and where the
    grid shrinks to less than half some cells are in none.
    """
    (y0, y1), (x0, x1) = _sources(boxes.shape[0], rows), _sources(boxes.shape[1], columns)
    out = np.empty((rows, columns, 4))
    out[..., 0], out[..., 2] = boxes[0, x0, 0], boxes[0, x1, 2]
    out[..., 1], out[..., 3] = boxes[y0, 0, 1][:, None], boxes[y1, 0, 3][:, None]
    return out


def _sources(count: int, wanted: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The first and the last of `count` values in each of the `wanted` ones made of them."""
    import torch

    one_hot = torch.eye(count, dtype=torch.float64)[None]  # [1, sources, count]
    used = torch.nn.functional.interpolate(one_hot, wanted, mode="linear")[0].numpy() > 0
    return used.argmax(0), count - 1 - used[::-1].argmax(0)


def clipped(boxes: Boxes, size: Size) -> npt.NDArray[np.float32]:
    """The part of each that lies in the picture; NaN where there is none. boxes: [P, 4]."""
    limits = np.array([size.width, size.height, size.width, size.height], float)
    inside = np.clip(boxes, 0, limits)
    with np.errstate(invalid="ignore"):
        empty = (inside[:, 2:] <= inside[:, :2]).any(1)
    inside[empty] = np.nan
    return inside.astype(np.float32)


NOWHERE: Boxes = np.full((1, 4), np.nan)


def with_newlines(boxes: Boxes) -> Boxes:
    """[rows * (columns + 1), 4]: a position without an area behind each row."""
    ends = np.full((boxes.shape[0], 1, 4), np.nan)
    return np.concatenate((boxes, ends), 1).reshape(-1, 4)
