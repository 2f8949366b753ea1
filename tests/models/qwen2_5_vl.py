"""Tiny Qwen2.5-VL checkpoints: three-dimensional positions, images of many lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from models.tokenizer import chat_template, make_tokenizer, unwritable
from models.weights import randomise

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
HEAD_DIM = 32
PIXELS = {"shortest_edge": 4 * 28 * 28, "longest_edge": 24 * 28 * 28}


def make_qwen2_5_vl(
    path: str | Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 512,
) -> Path:
    """Write a checkpoint with 4 to 24 tokens per image, by its size; returns its folder."""
    path = Path(path)
    tokenizer = make_tokenizer(vocab, SPECIALS, add_bos=False)
    start, end, image, video = (tokenizer.get_vocab()[s] for s in SPECIALS)
    hidden = heads * HEAD_DIM
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": hidden,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    randomise(model, seed, never=unwritable(tokenizer), eos=2)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.to(dtype).save_pretrained(path)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=PIXELS),
        chat_template=chat_template(IMAGE, bos=False),
    ).save_pretrained(path)
    return path
