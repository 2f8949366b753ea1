"""Image positions of a prompt, from the request's multimodal features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Modality names of vLLM's multimodal features whose embeddings are image positions.
VISION = frozenset({"image", "video", "vision_chunk"})


def has_image(mm_features: Sequence[Any]) -> bool:
    """Whether any feature puts at least one image embedding into the prompt."""
    return any(f.modality in VISION and f.mm_position.get_num_embeds() for f in mm_features)


def image_positions(mm_features: Sequence[Any], span: str) -> np.ndarray:
    """Prompt positions whose logits are scaled.

    mm_features: vLLM's `MultiModalFeatureSpec`s (`mm_position` is a `PlaceholderRange`).
    span: "embeddings", exactly the positions that hold an image embedding, so neither
        separators inside an image nor text between images; "interval", everything from
        the first to the last of them.
    Returns [P] int64, ascending and unique; empty without an image.
    """
    parts = [
        np.arange(first, last + 1)
        for feature in mm_features
        if feature.modality in VISION
        for first, last in feature.mm_position.extract_embeds_range()
    ]
    if not parts:
        return np.empty(0, np.int64)
    positions = np.unique(np.concatenate(parts)).astype(np.int64)
    if span == "interval" and len(positions):
        return np.arange(positions[0], positions[-1] + 1)
    return positions


def pack_bits(positions: np.ndarray) -> np.ndarray:
    """The positions as a bitmap: bit p % 32 of word p // 32.

    positions: [P] int. Returns [W] int32, W just large enough; [0] for none.
    """
    if not len(positions):
        return np.empty(0, np.int32)
    bits = np.zeros((int(positions.max()) // 32 + 1) * 32, np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32).view(np.int32)
