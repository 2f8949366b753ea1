"""Families that see a picture in its own proportion, as one grid: Pixtral, Mistral-3, Qwen-VL."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptvis_vllm.geometry.model import Model, UnknownGeometry
from adaptvis_vllm.geometry.views import Boxes, Size, View


def pixtral(model: Model, size: Size) -> Boxes:
    """[E, 4]: rows of patches, in Mistral-3 merged by `spatial_merge_size`."""
    from transformers.image_utils import ChannelDimension
    from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size

    edges = model.edges()
    if (
        not model.option("do_resize")
        or model.option("do_center_crop")
        or edges.keys() != {"longest_edge"}
    ):
        raise UnknownGeometry(f"the image processor's size {edges} is not known")
    unit = model.patch * getattr(model.config, "spatial_merge_size", 1)
    height, width = get_resize_output_image_size(
        size.like(), edges["longest_edge"], unit, ChannelDimension.FIRST
    )
    return View.whole(size, width, height).cells(unit, unit).reshape(-1, 4)


def qwen_vl(model: Model, size: Size) -> Boxes:
    """[E, 4]: rows of patches, merged by `spatial_merge_size`; of a video one grid for every
    `temporal_patch_size` frames, the last repeated to fill the number."""
    times, rows, columns = _qwen_vl_grid(model, size)
    merge = model.vision.spatial_merge_size
    unit = model.patch * merge
    view = View.whole(size, columns * model.patch, rows * model.patch)
    return np.tile(view.cells(unit, unit).reshape(-1, 4), (times, 1))


def check_qwen_vl(model: Model, size: Size, data: Any) -> None:
    """UnknownGeometry if the processor made another grid. data: vLLM's `MultiModalKwargsItem`."""
    name = f"{'video' if size.frames else 'image'}_grid_thw"
    made, known = tuple(data[name].data.flatten().tolist()), _qwen_vl_grid(model, size)
    if made != known:
        raise UnknownGeometry(f"{name} is {made}, and of {size} {known} is known")


def _qwen_vl_grid(model: Model, size: Size) -> tuple[int, int, int]:
    """Times, rows and columns of patches, before they are merged."""
    kind = "video" if size.frames else "image"
    processor = getattr(model.processor, f"{kind}_processor")
    if not processor.do_resize:
        raise UnknownGeometry(f"the {kind} processor resizes nothing")
    resized, count = model.info._get_vision_info(
        image_width=size.width,
        image_height=size.height,
        num_frames=size.frames or 1,
        image_processor=processor,
        mm_kwargs=model.arguments,
        modality=kind,
    )
    rows, columns = resized.height // model.patch, resized.width // model.patch
    return count * model.vision.spatial_merge_size**2 // (rows * columns), rows, columns
