"""Which positions a changed picture changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from support.towers import Tower


@dataclass(frozen=True)
class Raster:
    """unit: pixels of the raster to a position's side. reach: how far a pixel of it looks in the
    picture, in its own pixels and at least those of the picture: the filter's support, and of
    pictures that are resized several times the sum. even: by the side that shrinks most, where the
    proportion is kept at first: padding clips a box on one side, and a later stretch blurs more.
    """

    unit: int
    reach: int = 2
    even: bool = False


RASTERS = {
    "llava": Raster(14),
    "llava-next": Raster(14, even=True),
    "llava-onevision": Raster(14, even=True),
    "pixtral": Raster(14),
    "qwen2-vl": Raster(28),
    "qwen2.5-vl": Raster(28),
    "qwen3-vl": Raster(32),
    "internvl3": Raster(14),
    "gemma3": Raster(28),
    "idefics3": Raster(28, reach=9, even=True),
    "smolvlm": Raster(28, reach=9, even=True),
    "mistral3": Raster(14),
}


def noise(width: int, height: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """[height, width, 3]: of middle grey, so that it can be made brighter."""
    return np.random.default_rng(seed).integers(60, 150, (height, width, 3), np.uint8)


def brighter(pixels: npt.NDArray[np.uint8], box: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Pixels [height, width, 3] with the box x0, y0, x1, y1 changed, and nothing else."""
    x0, y0, x1, y1 = box
    out = pixels.copy()
    out[y0:y1, x0:x1] += 100
    return out


def margins(boxes: npt.NDArray[Any], raster: Raster) -> npt.NDArray[Any]:
    """[P, 2]: how far in the picture's x and y a change reaches into a position, or out of it."""
    scale = (boxes[:, 2:] - boxes[:, :2]) / raster.unit
    if raster.even:
        scale[:] = scale.max(1, keepdims=True)
    return raster.reach * np.maximum(scale, 1)


def meets(boxes: npt.NDArray[Any], box: npt.NDArray[Any], grow: npt.NDArray[Any]) -> Any:
    """[P]: whether boxes grown by [P, 2] share an area with the one."""
    low = np.maximum(boxes[:, :2] - grow, box[:2])
    high = np.minimum(boxes[:, 2:] + grow, box[2:])
    return (low < high).all(1)


def chosen(boxes: npt.NDArray[Any], seed: int) -> list[int]:
    """Positions with an area: at the corners of the picture, in its middle, at random; the first,
    the last and those at the end of a view or row."""
    known = np.flatnonzero(~np.isnan(boxes[:, 0]))
    middles = (boxes[known, :2] + boxes[known, 2:]) / 2
    turns = [middles @ np.array(direction) for direction in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    centre = np.abs(middles - np.nanmax(boxes[:, 2:], 0) / 2).sum(1)
    ends = np.flatnonzero(np.diff(middles[:, 0]) < 0)
    picked = [turn.argmax() for turn in turns] + [centre.argmin(), 0, len(known) - 1]
    picked += [*ends[:2], *(ends[:2] + 1)]
    picked += np.random.default_rng(seed).integers(0, len(known), 4).tolist()
    return sorted({int(known[i]) for i in picked})


def inside(box: npt.NDArray[Any], margin: npt.NDArray[Any]) -> npt.NDArray[np.int64] | None:
    """Whole pixels of the box, `margin` away from its edges; None where there are none."""
    low, high = np.ceil(box[:2] + margin), np.floor(box[2:] - margin)
    return None if (low >= high).any() else np.concatenate((low, high)).astype(int)


def pixel(box: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The pixel in the box's middle."""
    low = np.floor((box[:2] + box[2:]) / 2)
    return np.concatenate((low, low + 1)).astype(int)


def changed(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return (before != after).any(1)


def check_changes(tower: Tower, raster: Raster, prompt: str, size: tuple[int, int]) -> int:
    """A change within a position's box changes the position, and no other whose box it does not
    reach. Returns for how many positions it kept away from the box's edges.

    Resampling blurs over a box's edges. The change keeps away from them by the filter's reach,
    and then no other position of the same view changes; of another view (overview, thumbnail)
    only those that it reaches. Boxes too small for that are changed by the pixel in their middle.
    """
    pixels = noise(*size)
    media = {"image": Image.fromarray(pixels)}
    boxes, before = tower.locate(prompt, media).boxes, tower.embed(prompt, media)
    reach = margins(boxes, raster)
    exact = 0
    for position in chosen(boxes, seed=size[0]):
        box = inside(boxes[position], reach[position])
        exact += box is not None
        box = pixel(boxes[position]) if box is None else box
        after = tower.embed(prompt, {"image": Image.fromarray(brighter(pixels, box))})
        different = changed(before, after)
        assert different[position]
        assert not different[~meets(boxes, box, reach)].any()
        assert different[meets(boxes, box, -reach)].all()
    return exact
