"""A prompt with its images and videos, as a transformers processor takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
# Frames [T, H, W, 3] uint8, and what vLLM says of them: fps, duration, total_num_frames,
# frames_indices (which of those the frames are), do_sample_frames (whether to take fewer).
Video: TypeAlias = tuple[np.ndarray, Mapping[str, Any]]


def prepare(
    processor: Any, prompt: Prompt, images: Sequence[Image.Image], videos: Sequence[Video]
) -> Any:
    """The processor's `BatchFeature` of one prompt, text or chat messages."""
    arguments: dict[str, Any] = {}
    if not isinstance(prompt, str):
        prompt = processor.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=False
        )
        arguments["add_special_tokens"] = False  # the template writes the leading ones itself
    if images:
        arguments["images"] = list(images)
    if videos:
        arguments["videos"] = [frames for frames, _ in videos]
        about = [dict(metadata) for _, metadata in videos]
        sample = [metadata.pop("do_sample_frames", False) for metadata in about]
        # As vLLM: only processors that take fewer frames by themselves are told so.
        arguments["do_sample_frames"] = processor.video_processor.do_sample_frames and any(sample)
        arguments["video_metadata"] = about
    return processor(text=prompt, return_tensors="pt", **arguments)
