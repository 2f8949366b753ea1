"""Which positions of a picture lie in boxes, of a prompt that transformers prepared.

Where a position lies is `geometry`'s to say, which asks vLLM's processor for the model's settings;
no engine is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from adaptvis_vllm.geometry.locate import locate
from adaptvis_vllm.geometry.views import Size
from adaptvis_vllm.reference.inputs import Video
from adaptvis_vllm.steering.boxes import held_in
from adaptvis_vllm.steering.words import BadParameter, ranges


@dataclass(frozen=True)
class _Feature:
    """Of vLLM's `MultiModalFeatureSpec` and its `PlaceholderRange` what `locate` looks at."""

    modality: str
    positions: Sequence[int]
    data: None = None

    @property
    def mm_position(self) -> _Feature:
        return self

    @property
    def offset(self) -> int:
        return self.positions[0]

    def extract_embeds_range(self) -> list[tuple[int, int]]:
        parts = [part.split("-") for part in ranges(self.positions).split(",")]
        return [(int(part[0]), int(part[-1])) for part in parts]


def positions_in(
    path: str,
    pictures: Mapping[str, Sequence[Sequence[int]]],
    images: Sequence[Image.Image],
    videos: Sequence[Video],
    number: int,
    boxes: Sequence[float],
) -> list[int]:
    """Of picture `number`, ascending; ValueError where there are none or nobody knows.

    pictures: by modality the positions of each picture and video.
    """
    media = {
        "image": [Size(*image.size) for image in images[: len(pictures["image"])]],
        "video": [
            Size(frames.shape[2], frames.shape[1], frames=len(frames))
            for frames, _ in videos[: len(pictures.get("video", ()))]
        ],
    }
    features = [_Feature(kind, found) for kind, some in pictures.items() for found in some]
    features.sort(key=lambda feature: feature.offset)
    places = locate(_info(path), features, media)
    of_it = np.isin(places.positions, pictures["image"][number])
    held = held_in(places.boxes[of_it], boxes)
    if not held.any():
        raise BadParameter("boxes hold the centre of no image position of the picture", "boxes")
    return places.positions[of_it][held].tolist()


@cache
def _info(path: str) -> Any:
    """vLLM's `BaseProcessingInfo` of a checkpoint."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    return MULTIMODAL_REGISTRY.create_processor(ModelConfig(model=path)).info
