"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

import math

import numpy as np

from adaptvis_vllm.geometry.model import Model, UnknownGeometry, shortest_to
from adaptvis_vllm.geometry.views import (
    NOWHERE,
    Boxes,
    Size,
    View,
    interpolated,
    joined,
    split,
    with_newlines,
)


def llava(model: Model, size: Size) -> Boxes:
    """[E, 4]: one view, most often the middle of the picture; behind it in the vision tower is a
    class token, where that is kept."""
    view = _cropped(model, size)
    if (view.width, view.height) != (model.square, model.square):
        raise model.unlike(f"the image processor makes {view.width} x {view.height} pixels")
    boxes = view.cells(model.patch, model.patch).reshape(-1, 4)
    if model.vision.model_type == "clip_vision_model":
        boxes = np.concatenate((NOWHERE, boxes))
    strategy = model.config.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise UnknownGeometry(f"vision_feature_select_strategy {strategy!r} is not known")
    return boxes[1:] if strategy == "default" else boxes


def _cropped(model: Model, size: Size) -> View:
    """What LLaVA's, CLIP's and SigLIP's image processors show: padded, resized, cropped."""
    if not model.option("do_resize"):
        raise UnknownGeometry("the image processor resizes no pictures")
    padded = View.whole(size, size.width, size.height)
    if model.option("do_pad"):
        if not hasattr(model.processor.image_processor, "pad_to_square"):
            raise UnknownGeometry("the image processor pads pictures, other than to a square")
        side = max(size.width, size.height)
        padded = padded.part(-((side - size.width) // 2), -((side - size.height) // 2), side, side)
    edges = model.edges()
    if edges.keys() == {"shortest_edge"}:
        view = padded.resized(
            *shortest_to(Size(padded.width, padded.height), edges["shortest_edge"])
        )
    elif edges.keys() == {"height", "width"}:
        view = padded.resized(edges["width"], edges["height"])
    else:
        raise UnknownGeometry(f"the image processor's size {edges} is not known")
    if not model.option("do_center_crop"):
        return view
    crop = model.edges("crop_size")
    left, top = view.width - crop["width"], view.height - crop["height"]
    if min(left, top) < 0:
        raise UnknownGeometry(f"the image processor pads pictures to its crop_size {crop}")
    return view.part(left // 2, top // 2, crop["width"], crop["height"])


def llava_next(model: Model, size: Size) -> Boxes:
    """[E, 4]: the base view, then tiles without their padding, each row with a newline."""
    if model.config.vision_feature_select_strategy != "default":
        raise UnknownGeometry("the base view keeps its class token")
    base, tiles = _any_resolution(model, size)
    return np.concatenate((base.reshape(-1, 4), with_newlines(tiles)))


def llava_onevision(model: Model, size: Size) -> Boxes:
    """[E, 4]: of a picture as in LLaVA-NeXT, tiles shrunk where they are many; of a video each
    frame's pooled cells, and one newline."""
    if size.frames:
        edges = {k: v for k, v in dict(model.processor.video_processor.size).items() if v}
        if edges != {"height": model.square, "width": model.square}:
            raise model.unlike(f"the video processor's size is {edges}")
        frame = View.whole(size, model.square, model.square).cells(model.patch, model.patch)
        sides = (math.ceil(side / 2) for side in frame.shape[:2])
        pooled = interpolated(frame, *sides).reshape(-1, 4)
        return np.concatenate((np.tile(pooled, (size.frames, 1)), NOWHERE))
    base, tiles = _any_resolution(model, size)
    # vLLM takes "anyres_max_9", whatever the configuration says.
    rows, columns = tiles.shape[:2]
    ratio = math.sqrt(rows * columns / (9 * len(base) ** 2))
    if ratio > 1.1:
        tiles = interpolated(tiles, int(rows // ratio), int(columns // ratio))
    return np.concatenate((base.reshape(-1, 4), with_newlines(tiles)))


def _any_resolution(model: Model, size: Size) -> tuple[Boxes, Boxes]:
    """Cells of the whole picture in one tile; of the tiles as one grid, without padding rows."""
    import torch
    from transformers.image_processing_utils import (
        get_patch_output_size,
        select_best_resolution,
    )
    from transformers.image_utils import ChannelDimension
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    side, patch, edges = model.square, model.patch, model.edges()
    crop = model.edges("crop_size") if model.option("do_center_crop") else {}
    sides = {*edges.values(), *crop.values()}
    if not model.option("do_resize") or sides != {side}:
        raise model.unlike(f"the image processor's size is {edges}, crop_size {crop}")
    pinpoints = [list(point) for point in model.option("image_grid_pinpoints")]
    if pinpoints != [list(point) for point in model.config.image_grid_pinpoints]:
        raise UnknownGeometry("image_grid_pinpoints differ between model and image processor")
    both = (size.height, size.width)
    height, width = select_best_resolution(both, pinpoints)
    inner_height, inner_width = get_patch_output_size(
        size.like(), (height, width), ChannelDimension.FIRST
    )
    canvas = View.whole(size, inner_width, inner_height).part(
        -((width - inner_width) // 2), -((height - inner_height) // 2), width, height
    )
    cells = [tile.cells(patch, patch) for tile in split(canvas, side, side)]
    tiles = joined(cells, width // side)
    kept = unpad_image(torch.from_numpy(tiles).permute(2, 0, 1), both)
    return View.whole(size, side, side).cells(patch, patch), kept.permute(1, 2, 0).numpy()
