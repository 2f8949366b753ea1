"""Tiny Idefics3 and SmolVLM checkpoints: tiles with row and column marks, and a whole view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from checkpoints.checkpoint import TEXT, VISION, write
from checkpoints.tokenizer import chat_template, make_tokenizer

IMAGE = "<image>"
SPECIALS = (
    IMAGE,
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
)
TILE, PATCH, SCALE = 56, 14, 2


def make_idefics3(path: str | Path, *, seed: int = 0) -> Path:
    """Write a checkpoint with tiles of 4 tokens, up to four of them and a whole view."""
    tokenizer = make_tokenizer(512, SPECIALS)
    model = Idefics3ForConditionalGeneration(_config(Idefics3Config, tokenizer))
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**_image_options()),
        tokenizer=tokenizer,
        image_seq_len=(TILE // PATCH // SCALE) ** 2,
        chat_template=chat_template(IMAGE),
    )
    return write(Path(path), model, processor, seed)


def make_smolvlm(path: str | Path, *, seed: int = 0) -> Path:
    """Write a SmolVLM checkpoint of the same sizes."""
    tokenizer = make_tokenizer(512, SPECIALS)
    model = SmolVLMForConditionalGeneration(_config(SmolVLMConfig, tokenizer))
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**_image_options()),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**_image_options()),
        image_seq_len=(TILE // PATCH // SCALE) ** 2,
        chat_template=chat_template(IMAGE),
    )
    return write(Path(path), model, processor, seed)


def _config(kind: Any, tokenizer: Any) -> Any:
    return kind(
        vision_config={"image_size": TILE, "patch_size": PATCH, **VISION},
        text_config=LlamaConfig(
            architectures=["LlamaForCausalLM"], vocab_size=len(tokenizer), **TEXT
        ),
        image_token_id=tokenizer.get_vocab()[IMAGE],
        scale_factor=SCALE,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def _image_options() -> dict[str, Any]:
    return {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
