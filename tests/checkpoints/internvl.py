"""Tiny InternVL3 checkpoints: tiles of context tokens between <img> and </img>."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    Qwen2Config,
)

from checkpoints.checkpoint import TEXT, VISION, write
from checkpoints.tokenizer import chat_template, make_tokenizer

IMAGE = "<IMG_CONTEXT>"
NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE,
    "video_token": "<video>",
}
TILE, PATCH = 42, 7


def make_internvl(path: str | Path, *, seed: int = 0) -> Path:
    """Write a checkpoint with one to four tiles of 9 tokens and a thumbnail of 9."""
    tokenizer = make_tokenizer(512, tuple(NAMES.values()), add_bos=False, names=NAMES)
    length = (TILE // PATCH // 2) ** 2
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(image_size=TILE, patch_size=PATCH, **VISION),
        text_config=Qwen2Config(
            architectures=["Qwen2ForCausalLM"],
            vocab_size=len(tokenizer),
            tie_word_embeddings=False,
            **{k: v for k, v in TEXT.items() if k != "head_dim"} | {"hidden_size": 128},
        ),
        image_token_id=tokenizer.get_vocab()[IMAGE],
        image_seq_length=length,
        tie_word_embeddings=False,
    )
    size = {"height": TILE, "width": TILE}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=length,
        chat_template=chat_template(IMAGE, bos=False),
    )
    return write(Path(path), InternVLForConditionalGeneration(config), processor, seed)
