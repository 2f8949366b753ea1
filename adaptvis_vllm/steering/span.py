"""Image positions of a prompt, from the request's multimodal features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

# By span, names of vLLM's modalities whose embeddings are image positions. A vision_chunk
# is one or the other, and does not say which.
_IMAGE = frozenset({"image", "vision_chunk"})
_VIDEO = frozenset({"video", "vision_chunk"})
_MODALITIES = {"image": _IMAGE, "video": _VIDEO}


def has_positions(mm_features: Sequence[Any], span: str, **chosen: Any) -> bool:
    """Whether `image_positions` are any."""
    wanted = _wanted(mm_features, span, **chosen)
    return any(feature.mm_position.get_num_embeds() for feature in wanted)


def image_positions(mm_features: Sequence[Any], span: str, **chosen: Any) -> np.ndarray:
    """Prompt positions whose logits are scaled.

    mm_features: vLLM's `MultiModalFeatureSpec`s (`mm_position` is a `PlaceholderRange`), in the
        prompt's order.
    span: "embeddings", exactly the positions that hold the embedding of an image or a video
        frame, so neither separators inside an image nor text between images or frames;
        "image" or "video", those of the one kind; "interval", everything from the first to
        the last of all.
    chosen: images and videos, numbers of the pictures and the videos that are meant, each counted
        from 0; None for all. Where one of them is given, only what is given is meant.
    Returns [P] int64, ascending and unique; empty where there are none.
    """
    parts = [
        np.arange(first, last + 1)
        for feature in _wanted(mm_features, span, **chosen)
        for first, last in feature.mm_position.extract_embeds_range()
    ]
    if not parts:
        return np.empty(0, np.int64)
    positions = np.unique(np.concatenate(parts)).astype(np.int64)
    if span == "interval" and len(positions):
        return np.arange(positions[0], positions[-1] + 1)
    return positions


def _wanted(
    mm_features: Sequence[Any],
    span: str,
    images: Collection[int] | None = None,
    videos: Collection[int] | None = None,
) -> Iterator[Any]:
    modalities = _MODALITIES.get(span, _IMAGE | _VIDEO)
    seen: Counter[str] = Counter()
    for feature in mm_features:
        modality = feature.modality
        number = seen[modality]
        seen[modality] += 1
        if modality not in modalities:
            continue
        named = [n for n, kind in ((images, _IMAGE), (videos, _VIDEO)) if modality in kind]
        if images is videos is None or any(n is not None and number in n for n in named):
            yield feature


def pack_bits(positions: np.ndarray) -> np.ndarray:
    """The positions as a bitmap: bit p % 32 of word p // 32.

    positions: [P] int. Returns [W] int32, W just large enough; [0] for none.
    """
    if not len(positions):
        return np.empty(0, np.int32)
    bits = np.zeros((int(positions.max()) // 32 + 1) * 32, np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32).view(np.int32)
