"""Tiny LLaVA-1.5 checkpoints that stock transformers and vLLM both load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedConfig,
)

from checkpoints.tokenizer import chat_template, make_tokenizer, unwritable
from checkpoints.weights import randomise, rename_weights

IMAGE = "<image>"
PATCH = 14


def make_llava(
    path: str | Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    text: str = "llama",
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    vocab: int = 512,
    image_size: int = 56,
    vision_hidden: int = 32,
    vision_layers: int = 2,
    sliding_window: int = 24,
    softcap: float = 5.0,
    max_position: int = 4096,
) -> Path:
    """Write a checkpoint with (image_size / 14) ** 2 tokens per image; returns its folder.

    text: "llama"; "mistral", every layer with `sliding_window`; "gemma2", with `softcap` on
    the attention logits and the window in every other layer.
    """
    path = Path(path)
    tokenizer = make_tokenizer(vocab, (IMAGE,))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision_hidden,
            intermediate_size=2 * vision_hidden,
            num_hidden_layers=vision_layers,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=PATCH,
            projection_dim=vision_hidden,
        ),
        text_config=_text_config(
            text,
            sliding_window,
            softcap,
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_position,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        image_seq_length=(image_size // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text == "gemma2",
    )
    model: Any = LlavaForConditionalGeneration(config)
    randomise(model, seed, never=unwritable(tokenizer), eos=2)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.to(dtype).save_pretrained(path)
    rename_weights(path, vllm_name)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=chat_template(IMAGE),
    ).save_pretrained(path)
    return path


def vllm_name(name: str) -> str:
    """vLLM's CLIP keeps a level that transformers 5 dropped and still accepts."""
    before, dot, after = name.partition("vision_tower.")
    if dot and not after.startswith("vision_model."):
        return f"{before}vision_tower.vision_model.{after}"
    return name


def _text_config(text: str, window: int, softcap: float, **common: Any) -> PreTrainedConfig:
    if text == "llama":
        return LlamaConfig(architectures=["LlamaForCausalLM"], **common)
    if text == "mistral":
        return MistralConfig(architectures=["MistralForCausalLM"], sliding_window=window, **common)
    if text == "gemma2":
        return Gemma2Config(
            architectures=["Gemma2ForCausalLM"],
            sliding_window=window,
            attn_logit_softcapping=softcap,
            final_logit_softcapping=None,
            query_pre_attn_scalar=common["head_dim"],
            **common,
        )
    raise ValueError(f"no text model {text!r}")
