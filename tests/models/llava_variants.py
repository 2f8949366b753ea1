"""LLaVA's relatives: tiles and newline embeddings (LLaVA-NeXT), separators (Pixtral)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
)

from models.llava import IMAGE, PATCH, vllm_name
from models.tokenizer import chat_template, make_tokenizer, unwritable
from models.weights import randomise, rename_weights

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PIXTRAL_IMAGE = "[IMG]"


def make_llava_next(path: str | Path, *, seed: int = 0, size: int = 56) -> Path:
    """Write a LLaVA-NeXT checkpoint with a base view and up to four tiles of 16 tokens."""
    path = Path(path)
    tokenizer = make_tokenizer(512, (IMAGE,))
    grid = [[size, 2 * size], [2 * size, size], [2 * size, 2 * size]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=size,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            architectures=["LlamaForCausalLM"], vocab_size=len(tokenizer), **TEXT
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config)
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_grid_pinpoints=grid,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=chat_template(IMAGE),
    )
    return _save(path, model, processor, seed)


def make_pixtral(path: str | Path, *, seed: int = 0) -> Path:
    """Write a Pixtral checkpoint: rows of [IMG], each ended by [IMG_BREAK] or [IMG_END]."""
    path = Path(path)
    tokenizer = make_tokenizer(512, (PIXTRAL_IMAGE, "[IMG_BREAK]", "[IMG_END]"))
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=84,
            patch_size=PATCH,
        ),
        text_config=MistralConfig(
            architectures=["MistralForCausalLM"],
            vocab_size=len(tokenizer),
            sliding_window=None,
            **TEXT,
        ),
        image_token_index=tokenizer.get_vocab()[PIXTRAL_IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 84}, patch_size=PATCH),
        tokenizer=tokenizer,
        patch_size=PATCH,
        chat_template=chat_template(PIXTRAL_IMAGE),
    )
    return _save(path, model, processor, seed)


def _save(path: Path, model: Any, processor: Any, seed: int) -> Path:
    tokenizer = processor.tokenizer
    randomise(model, seed, never=unwritable(tokenizer), eos=2)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(path)
    if model.config.vision_config.model_type == "clip_vision_model":
        rename_weights(path, vllm_name)
    processor.save_pretrained(path)
    return path
