"""LLaVA's relatives: tiles and newline embeddings (LLaVA-NeXT), videos too (LLaVA-OneVision),
separators (Pixtral)."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from checkpoints.checkpoint import TEXT, VISION, write
from checkpoints.llava import IMAGE, PATCH, vllm_name
from checkpoints.tokenizer import chat_template, make_tokenizer

VIDEO = "<video>"
PIXTRAL_IMAGE = "[IMG]"


def make_llava_next(path: str | Path, *, seed: int = 0, size: int = 56) -> Path:
    """Write a LLaVA-NeXT checkpoint with a base view and up to four tiles of 16 tokens."""
    tokenizer = make_tokenizer(512, (IMAGE,))
    grid = [[size, 2 * size], [2 * size, size], [2 * size, 2 * size]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=size, patch_size=PATCH, **VISION),
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
    return write(Path(path), model, processor, seed, vllm_name)


def make_llava_onevision(path: str | Path, *, seed: int = 2, size: int = 56) -> Path:
    """Write a LLaVA-OneVision checkpoint: tiles as in LLaVA-NeXT, 4 tokens a video frame."""
    tokenizer = make_tokenizer(512, (IMAGE, VIDEO), add_bos=False)
    grid = [[size, size], [size, 2 * size], [2 * size, size], [2 * size, 2 * size]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=size, patch_size=PATCH, vision_use_head=False, **VISION
        ),
        text_config=Qwen2Config(
            architectures=["Qwen2ForCausalLM"],
            vocab_size=len(tokenizer),
            tie_word_embeddings=False,
            **{k: v for k, v in TEXT.items() if k != "head_dim"} | {"hidden_size": 128},
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        video_token_index=tokenizer.get_vocab()[VIDEO],
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
    )
    tile = {"height": size, "width": size}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=tile, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=tile),
        num_image_tokens=(size // PATCH) ** 2,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        video_token=VIDEO,
        chat_template=chat_template(IMAGE, VIDEO, bos=False),
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    return write(Path(path), model, processor, seed, vllm_name)


def make_pixtral(path: str | Path, *, seed: int = 0) -> Path:
    """Write a Pixtral checkpoint: rows of [IMG], each ended by [IMG_BREAK] or [IMG_END]."""
    tokenizer = make_tokenizer(512, (PIXTRAL_IMAGE, "[IMG_BREAK]", "[IMG_END]"))
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(image_size=84, patch_size=PATCH, **VISION),
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
    return write(Path(path), model, processor, seed)
