"""Families whose pictures are cut into tiles that the vision tower sees one by one: InternVL3,
Idefics3, SmolVLM, Gemma-3 with pan and scan."""

from __future__ import annotations

import math

import numpy as np

from adaptvis_vllm.geometry.model import Model
from adaptvis_vllm.geometry.views import Boxes, Size, View, split


def internvl(model: Model, size: Size) -> Boxes:
    """[E, 4]: tiles row by row, then the thumbnail where there are several; patches merged by
    `downsample_ratio`."""
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    model.check_stretched()
    columns = rows = 1
    if model.option("crop_to_patches"):
        columns, rows = get_optimal_tiled_canvas(
            (size.height, size.width),
            (model.square, model.square),
            model.option("min_patches"),
            model.option("max_patches"),
        )
    views = _tiled(size, rows, columns, model.square)
    return _cells(views, model.patch, round(1 / model.config.downsample_ratio))


def idefics3(model: Model, size: Size) -> Boxes:
    """[E, 4]: tiles row by row, then the whole view; patches merged by `scale_factor`."""
    edges = model.edges("max_image_size")
    if not model.option("do_resize") or edges != {"longest_edge": model.square}:
        raise model.unlike(f"the image processor's max_image_size is {edges}")
    _, rows, columns = model.info._get_image_feature_grid_size(
        image_width=size.width,
        image_height=size.height,
        processor=model.processor,
        mm_kwargs=model.arguments,
    )
    views = _tiled(size, max(rows, 1), max(columns, 1), model.square)
    return _cells(views, model.patch, model.config.scale_factor)


def gemma3(model: Model, size: Size) -> Boxes:
    """[E, 4]: the whole picture, then the crops of pan and scan if it is on; patches pooled."""
    model.check_stretched()
    crops = model.info.get_num_crops(
        image_width=size.width,
        image_height=size.height,
        processor=model.processor,
        mm_kwargs=model.arguments,
    )
    whole = View.whole(size, size.width, size.height)
    wide = size.width >= size.height
    across, down = (crops, 1) if wide else (1, crops)
    step_x = math.ceil(size.width / max(across, 1))
    step_y = math.ceil(size.height / max(down, 1))
    parts = [  # slices: the last one ends at the picture's edge
        whole.part(x, y, min(step_x, size.width - x), min(step_y, size.height - y))
        for y in range(0, step_y * down, step_y)
        for x in range(0, step_x * across, step_x)
    ]
    views = [view.resized(model.square, model.square) for view in (whole, *parts)]
    pool = (
        model.square // model.patch // math.isqrt(getattr(model.config, "mm_tokens_per_image", 1))
    )
    return _cells(views, model.patch, pool)


def _tiled(size: Size, rows: int, columns: int, side: int) -> list[View]:
    """The tiles of the stretched picture, and where they are several all of it in one more."""
    canvas = View.whole(size, columns * side, rows * side)
    whole = [View.whole(size, side, side)] if rows * columns > 1 else []
    return split(canvas, side, side) + whole


def _cells(views: list[View], patch: int, merged: int) -> Boxes:
    """[E, 4]: row by row in each view, patches merged as squares of `merged` x `merged`."""
    return np.concatenate([v.cells(patch * merged, patch * merged).reshape(-1, 4) for v in views])
