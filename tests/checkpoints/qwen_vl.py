"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints: three-dimensional positions, images and
videos of many lengths, in Qwen3-VL vision features added to the first decoder layers too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from checkpoints.checkpoint import TEXT, write
from checkpoints.tokenizer import chat_template, make_tokenizer

SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
VISION = {"depth": 2, "num_heads": 2}


def make_qwen2_vl(path: str | Path, *, seed: int = 0) -> Path:
    """Write a checkpoint with 4 to 24 tokens an image, by its size; returns its folder."""
    vision = {**VISION, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 128}
    classes = (Qwen2VLConfig, Qwen2VLForConditionalGeneration)
    return _make(path, *classes, Qwen2VLProcessor, vision, seed)


def make_qwen2_5_vl(path: str | Path, *, seed: int = 0) -> Path:
    """The same for Qwen2.5-VL, half of whose vision layers see windows only."""
    vision = {
        **VISION,
        "hidden_size": 32,
        "intermediate_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 128,
    }
    classes = (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)
    return _make(path, *classes, Qwen2_5_VLProcessor, vision, seed)


def make_qwen3_vl(path: str | Path, *, seed: int = 0) -> Path:
    """The same for Qwen3-VL; each frame pair of a video follows its time as text."""
    vision = {
        **VISION,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": 128,
    }
    classes = (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    return _make(path, *classes, Qwen3VLProcessor, vision, seed)


def _make(
    path: str | Path, config_of: Any, model_of: Any, processor_of: Any, vision: Any, seed: int
) -> Path:
    tokenizer = make_tokenizer(512, SPECIALS, add_bos=False)
    start, end, image, video = (tokenizer.get_vocab()[s] for s in SPECIALS)
    third = config_of is Qwen3VLConfig
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    rope |= {"mrope_interleaved": True} if third else {}
    text = {**TEXT, "hidden_size": 128, "intermediate_size": 256, "rope_parameters": rope}
    if not third:
        del text["head_dim"]  # hidden_size / num_attention_heads
    config = config_of(
        text_config={**text, "vocab_size": len(tokenizer)},
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        architectures=[model_of.__name__],
    )
    patch = 16 if third else 14
    pixels = {"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": 24 * (2 * patch) ** 2}
    video_processor_of: Any = Qwen3VLVideoProcessor if third else Qwen2VLVideoProcessor
    video_processor = video_processor_of(size=pixels, patch_size=patch)
    # One for both, as in published checkpoints: vLLM takes the image processor's for videos too.
    colours = {name: getattr(video_processor, name) for name in ("image_mean", "image_std")}
    processor = processor_of(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=patch, **colours),
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=chat_template(IMAGE, VIDEO, bos=False),
    )
    return write(Path(path), model_of(config), processor, seed)
