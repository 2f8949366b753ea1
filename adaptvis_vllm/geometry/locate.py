"""The boxes of a request's image positions, from what vLLM's front end knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptvis_vllm.geometry import grids, llava, tiles
from adaptvis_vllm.geometry.model import Model, UnknownGeometry
from adaptvis_vllm.geometry.views import Boxes, Size, clipped

_KINDS = ("image", "video")  # vLLM's modalities that have boxes


@dataclass(frozen=True)
class Geometry:
    """Where the image positions of a prompt lie, one entry for each, in the prompt's order.

    positions: [P] int32 in the prompt, ascending: those of `steering.span.image_positions`.
    image: [P] int32, which of the prompt's pictures and videos, counted from 0 as they appear.
    frame: [P] int32, of a video the first frame that is in it, of those that the processor was
        given; -1 for a picture and where there is no area.
    boxes: [P, 4] float32: x0, y0, x1, y1 in pixels of the picture as the user gave it, EXIF
        orientation applied, edges from 0 to width and height; NaN where a position has no area
        (newlines, padding, class tokens).
    """

    positions: npt.NDArray[np.int32]
    image: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Family:
    """boxes: of the embeddings of one picture or video, [E, 4]. step: frames of a video that
    become one, 0 where its videos are not known. check: against vLLM's processed data."""

    boxes: Callable[[Model, Size], Boxes]
    step: Callable[[Model], int] = lambda model: 0
    check: Callable[[Model, Size, Any], None] = lambda model, size, data: None


def _llava_or_pixtral(model: Model, size: Size) -> Boxes:
    pixtral = model.vision.model_type == "pixtral"
    return (grids.pixtral if pixtral else llava.llava)(model, size)


_QWEN = _Family(grids.qwen_vl, lambda model: model.vision.temporal_patch_size, grids.check_qwen_vl)

# By the architecture as vLLM resolves it: a relative may order its embeddings otherwise.
FAMILIES = {
    "LlavaForConditionalGeneration": _Family(_llava_or_pixtral),
    "LlavaNextForConditionalGeneration": _Family(llava.llava_next),
    "LlavaOnevisionForConditionalGeneration": _Family(llava.llava_onevision, lambda model: 1),
    "Qwen2VLForConditionalGeneration": _QWEN,
    "Qwen2_5_VLForConditionalGeneration": _QWEN,
    "Qwen3VLForConditionalGeneration": _QWEN,
    "InternVLForConditionalGeneration": _Family(tiles.internvl),
    "Gemma3ForConditionalGeneration": _Family(tiles.gemma3),
    "Idefics3ForConditionalGeneration": _Family(tiles.idefics3),
    "SmolVLMForConditionalGeneration": _Family(tiles.idefics3),
    "Mistral3ForConditionalGeneration": _Family(grids.pixtral),
}


def sizes(items: Mapping[str, Any]) -> dict[str, list[Size]]:
    """Sizes of a prompt's pictures and videos by modality, each in the prompt's order.

    items: vLLM's `MultiModalDataItems`, which `info.parse_mm_data` makes of a prompt's
    `multi_modal_data`; that turns pictures as their EXIF orientation says. UnknownGeometry for
    embeddings in a picture's place and for what is named by a `uuid` alone.
    """
    from vllm.multimodal.parse import ImageProcessorItems, VideoProcessorItems

    found: dict[str, list[Size]] = {}
    for kind, group in items.items():
        if kind not in _KINDS:
            continue
        if not isinstance(group, ImageProcessorItems | VideoProcessorItems):
            raise UnknownGeometry(f"embeddings are given, not the {kind}")
        found[kind] = []
        for number in range(len(group)):
            item: Any = group.get(number)
            if item is None:
                raise UnknownGeometry(f"a {kind} is named by its uuid alone")
            if isinstance(group, ImageProcessorItems):
                found[kind].append(Size(*group.get_image_size(number)))
            else:
                frames = item[0] if isinstance(item, tuple) else item  # without its metadata
                alone = VideoProcessorItems([frames])
                found[kind].append(Size(*alone.get_frame_size(0), frames=len(frames)))
    return found


def locate(
    info: Any,
    features: Sequence[Any],
    media: Mapping[str, Sequence[Size]],
    arguments: Mapping[str, Any] | None = None,
) -> Geometry:
    """Boxes of all image positions of a prompt.

    info: vLLM's `BaseProcessingInfo` of the model, its `renderer.get_mm_processor().info`.
    features: vLLM's `MultiModalFeatureSpec`s of the prompt, in any order;
    their `data` is only looked at where it is there. media: what `sizes` returns.
    arguments: the request's `mm_processor_kwargs`.

    UnknownGeometry, a ValueError with a sentence, where it is not known: another architecture,
    a processor with other settings than the family's, pruned video tokens, and whenever the
    number of boxes is not that of the embeddings.
    """
    model = Model(info, arguments)
    family = FAMILIES.get(model.architecture)
    if family is None:
        raise UnknownGeometry(f"where image positions lie is not known of {model.architecture}")
    features = sorted(
        (f for f in features if f.modality in _KINDS), key=lambda f: f.mm_position.offset
    )
    seen = dict.fromkeys(_KINDS, 0)
    parts = []
    for number, feature in enumerate(features):
        kind = feature.modality
        if seen[kind] >= len(media.get(kind, ())):
            raise UnknownGeometry(f"the prompt has more {kind}s than sizes are given of")
        size = media[kind][seen[kind]]
        seen[kind] += 1
        parts.append(_of_one(model, family, feature, size, number))
    if not parts:
        empty = np.empty(0, np.int32)
        return Geometry(empty, empty, empty, np.empty((0, 4), np.float32))
    return Geometry(*map(np.concatenate, zip(*parts, strict=True)))


def _of_one(
    model: Model, family: _Family, feature: Any, size: Size, number: int
) -> tuple[npt.NDArray[Any], ...]:
    """`Geometry`'s arrays of one picture or video."""
    kind = feature.modality
    if (kind == "video") != bool(size.frames):
        raise UnknownGeometry(f"the size of {kind} {number} is given as {size}")
    step = family.step(model)
    if size.frames and not step:
        raise UnknownGeometry(f"videos of {model.architecture} are not known")
    if size.frames and model.info.ctx.get_mm_config().is_multimodal_pruning_enabled():
        raise UnknownGeometry("which video tokens --video-pruning-rate keeps is not known")
    boxes = family.boxes(model, size)
    ranges = feature.mm_position.extract_embeds_range()
    positions = np.concatenate([np.arange(a, b + 1, dtype=np.int32) for a, b in ranges])
    if len(boxes) != len(positions):
        raise UnknownGeometry(
            f"{kind} {number} of {size} has {len(positions)} positions, and boxes are known of "
            f"{len(boxes)}"
        )
    if feature.data is not None:
        family.check(model, size, feature.data)
    frame = np.full(len(boxes), -1, np.int32)
    if size.frames:
        area = np.flatnonzero(~np.isnan(boxes[:, 0]))
        firsts = np.arange(0, size.frames, step, dtype=np.int32)
        frame[area] = np.repeat(firsts, len(area) // len(firsts))
    image = np.full(len(boxes), number, np.int32)
    return positions, image, frame, clipped(boxes, size)
