"""A map laid over its picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SIDE = 512  # pixels of the longer side of the raster that a map is painted on
_OPACITY = 0.6
_HEAT: dict[str, Any] = {"black": "#00007f", "mid": "#ff3000", "white": "#ffff80"}
_SIGNED: dict[str, Any] = {"black": "#2040ff", "mid": "#ffffff", "white": "#ff2020"}


def overlay(
    maps: Any,
    picture: Image.Image,
    layer: int | None = None,
    *,
    which: str = "after",
    head: int | None = None,
    image: int = 0,
    frame: int | None = None,
) -> Image.Image:
    """See `Maps.overlay`; maps: a `Maps`, here and below."""
    weights = chosen(maps, layer, which, head)
    raster = density(maps, weights, picture.size, image, frame)
    signed = which == "difference"
    most = float(np.abs(raster).max()) or 1.0
    level = raster / most / 2 + 0.5 if signed else raster / most
    grey = Image.fromarray((level * 255).astype(np.uint8))
    colours = ImageOps.colorize(grey, **(_SIGNED if signed else _HEAT))
    strength = np.abs(raster) / most
    mask = Image.fromarray((_OPACITY * 255 * np.sqrt(strength)).astype(np.uint8))
    size = picture.size
    smooth = Image.Resampling.BILINEAR
    base = picture.convert("RGB")
    return Image.composite(colours.resize(size, smooth), base, mask.resize(size, smooth))


def chosen(maps: Any, layer: int | None, which: str, head: int | None) -> npt.NDArray[np.float32]:
    """[P] float32: of one layer and head, or means; ValueError for one that there is not."""
    values = maps.weights(which)
    values = values.mean(0) if layer is None else values[maps.line(layer)]
    if head is None:
        return values.mean(0)
    if not 0 <= head < len(values):
        raise ValueError(f"head must be 0 to {len(values) - 1}, not {head}")
    return values[head]


def density(
    maps: Any,
    weights: npt.NDArray[Any],
    size: tuple[int, int],
    image: int = 0,
    frame: int | None = None,
) -> npt.NDArray[np.float32]:
    """[height, width] float32, at most `SIDE` long: weight a pixel, each position's spread evenly
    over its box. Where boxes overlap, as tiles and their overview do, they add up.

    weights: [P]. size: width and height of the picture, which the boxes count in.
    """
    if maps.unknown:
        raise ValueError(maps.unknown)
    on = (maps.image == image) & ~np.isnan(maps.boxes[:, 0])
    if frame is not None:
        on &= maps.frame == frame
    if not on.any():
        raise ValueError(
            f"there is no map of picture {image}" + ("" if frame is None else f", frame {frame}")
        )
    scale = min(1.0, SIDE / max(size))
    width, height = (max(1, round(edge * scale)) for edge in size)
    per_pixel = np.array([width / size[0], height / size[1]] * 2)
    out = np.zeros((height, width), np.float32)
    for box, weight in zip(maps.boxes[on] * per_pixel, weights[on], strict=True):
        x0, y0 = np.floor(box[:2] + 0.5).astype(int)
        x1, y1 = np.floor(box[2:] + 0.5).astype(int)
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        part = out[y0:y1, x0:x1]
        if part.size:
            part += weight / part.size
    return out
