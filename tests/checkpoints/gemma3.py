"""Tiny Gemma-3 checkpoints: sliding and global layers, image tokens that see each other."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from checkpoints.checkpoint import TEXT, VISION, write
from checkpoints.llava import vllm_name
from checkpoints.tokenizer import chat_template, make_tokenizer

# vLLM does not find an image that a newline follows at once.
IMAGE = "<start_of_image> "
NAMES = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
NEWLINES = tuple("\n" * i for i in range(1, 5))  # vLLM looks for these tokens
SIZE, PATCH = 112, 14


def make_gemma3(path: str | Path, *, seed: int = 0, window: int = 24) -> Path:
    """Write a checkpoint with 16 tokens per image; two of its four layers have the window."""
    tokenizer = make_tokenizer(512, tuple(NAMES.values()), names=NAMES, added=NEWLINES)
    ids = tokenizer.get_vocab()
    sides = SIZE // PATCH // 2
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(
            image_size=SIZE, patch_size=PATCH, vision_use_head=False, **VISION
        ),
        text_config=Gemma3TextConfig(
            architectures=["Gemma3ForCausalLM"],
            vocab_size=len(tokenizer),
            sliding_window=window,
            layer_types=["sliding_attention", "full_attention"] * 2,
            query_pre_attn_scalar=8,
            **TEXT,
        ),
        mm_tokens_per_image=sides**2,
        boi_token_index=ids[NAMES["boi_token"]],
        eoi_token_index=ids[NAMES["eoi_token"]],
        image_token_index=ids[NAMES["image_token"]],
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": SIZE, "width": SIZE}),
        tokenizer=tokenizer,
        image_seq_length=sides**2,
        chat_template=chat_template(IMAGE),
    )
    return write(Path(path), Gemma3ForConditionalGeneration(config), processor, seed, vllm_name)
