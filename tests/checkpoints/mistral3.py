"""Tiny Mistral-3 checkpoints: merged patches in rows that end with a break token."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
)

from checkpoints.checkpoint import TEXT, VISION, write
from checkpoints.tokenizer import chat_template, make_tokenizer

IMAGE = "[IMG]"
SIZE, PATCH, MERGE = 84, 7, 2


def make_mistral3(path: str | Path, *, seed: int = 0) -> Path:
    """Write a checkpoint with up to 6 rows of 6 tokens per image."""
    tokenizer = make_tokenizer(512, (IMAGE, "[IMG_BREAK]", "[IMG_END]"))
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(
            image_size=SIZE, patch_size=PATCH, **VISION | {"hidden_size": 64}
        ),
        text_config=MistralConfig(
            architectures=["MistralForCausalLM"],
            vocab_size=len(tokenizer),
            sliding_window=None,
            **TEXT,
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        spatial_merge_size=MERGE,
        tie_word_embeddings=False,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": SIZE}, patch_size=PATCH),
        tokenizer=tokenizer,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        chat_template=chat_template(IMAGE),
    )
    return write(Path(path), Mistral3ForConditionalGeneration(config), processor, seed)
