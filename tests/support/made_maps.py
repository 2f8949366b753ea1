"""`Maps` of no model, in which a test knows what is where."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from adaptvis_vllm.maps.maps import Maps

SINK = 3  # a column of the grid's first row: a position that takes much in every head


def picture(size: tuple[int, int] = (640, 420)) -> Image.Image:
    """A red disc to the left and a blue square to the right, on grey."""
    image = Image.new("RGB", size, "#b9c0c7")
    draw, (width, height) = ImageDraw.Draw(image), size
    draw.rectangle((0, height * 0.72, width, height), fill="#8c7a63")
    draw.ellipse((width * 0.1, height * 0.35, width * 0.35, height * 0.75), fill="#c33")
    draw.rectangle((width * 0.62, height * 0.3, width * 0.9, height * 0.75), fill="#36c")
    return image


def grid(columns: int, rows: int, size: tuple[int, int]) -> Any:
    """[rows * columns, 4]: boxes of a picture of that size."""
    xs, ys = np.linspace(0, size[0], columns + 1), np.linspace(0, size[1], rows + 1)
    boxes = np.empty((rows, columns, 4), np.float32)
    boxes[..., 0], boxes[..., 2] = xs[:-1], xs[1:]
    boxes[..., 1], boxes[..., 3] = ys[:-1, None], ys[1:, None]
    return boxes.reshape(-1, 4)


def made_maps(
    sizes: tuple[tuple[int, int], ...] = ((640, 420),),
    *,
    layers: tuple[int, ...] = tuple(range(8)),
    heads: int = 8,
    columns: int = 16,
    rows: int = 12,
    steered: bool = True,
    frames: int = 0,
    tokens: int = 0,
    unknown: str = "",
) -> Maps:
    """The heads look at the disc before and at the square after, later layers more so; head 0 at
    nothing much. One sink in each picture; behind each row a position without an area.

    tokens: so many generated tokens, which all look at the middle. frames: the pictures are videos
    of so many frames, each with a grid of its own.
    """
    boxes, image, frame = [], [], []
    newline = np.full((1, 4), np.nan, np.float32)
    for number, size in enumerate(sizes):
        for first in range(frames or 1):
            cells = grid(columns, rows, size).reshape(rows, columns, 4)
            one = np.concatenate([np.concatenate((row, newline)) for row in cells])
            boxes.append(one)
            image.append(np.full(len(one), number))
            frame.append(np.where(np.isnan(one[:, 0]), -1, first if frames else -1))
    places, images = np.concatenate(boxes), np.concatenate(image)
    count = len(places)
    depth = np.arange(1, len(layers) + 1)[:, None] / len(layers)
    sharpness = np.arange(heads)[None] / heads

    def weights(centre: float, part: float) -> tuple[Any, Any]:
        width, height = np.array(sizes, float)[images].T
        x = np.nan_to_num((places[:, 0] + places[:, 2]) / 2, nan=-1e9) / width
        y = np.nan_to_num((places[:, 1] + places[:, 3]) / 2, nan=-1e9) / height
        near = np.exp(-((x - centre) ** 2 + (y - 0.55) ** 2) / 0.015)
        raw = 0.3 + (8 * depth * sharpness)[..., None] * near
        raw[..., SINK :: columns * rows + rows] = 20  # of each picture or frame
        share = part * (0.5 + depth * 0.5) * (0.6 + 0.4 * sharpness)
        out = raw / raw.sum(-1, keepdims=True) * share[..., None]
        rest = np.stack(((1 - share) * 0.7, (1 - share) * 0.3), -1)
        return out.astype(np.float16), rest.astype(np.float16)

    before, rest_before = weights(0.22, 0.3)
    after, rest_after = weights(0.76, 0.5)
    middle, rest_middle = weights(0.5, 0.4)
    return Maps(
        layers=np.array(layers, np.int32),
        positions=np.arange(5, 5 + count, dtype=np.int32),
        image=images.astype(np.int32),
        frame=np.concatenate(frame).astype(np.int32),
        boxes=np.full_like(places, np.nan) if unknown else places,
        sizes=np.array(sizes, np.int32),
        before=before,
        rest_before=rest_before,
        after=after if steered else None,
        rest_after=rest_after if steered else None,
        tokens=np.stack([middle] * tokens) if tokens else None,
        rest_tokens=np.stack([rest_middle] * tokens) if tokens else None,
        unknown=unknown,
    )
