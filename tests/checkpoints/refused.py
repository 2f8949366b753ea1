"""Checkpoints whose engine does not start: no weights, they are never asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    GemmaConfig,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    Llama4Config,
    Llama4ImageProcessor,
    Llama4Processor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    Siglip2VisionConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from checkpoints.checkpoint import TEXT, VISION
from checkpoints.tokenizer import chat_template, make_tokenizer

IMAGE = "<image>"


def make_paligemma(path: Path) -> Path:
    """PaliGemma: a prefix-LM, every prompt row sees the whole prompt."""
    tokenizer = make_tokenizer(512, (IMAGE,), names={"image_token": IMAGE}, added=("\n",))
    size = {"height": 56, "width": 56}
    processor = PaliGemmaProcessor(
        image_processor=SiglipImageProcessor(size=size, image_seq_length=16),
        tokenizer=tokenizer,
        chat_template=chat_template(IMAGE, bos=False),
    )
    config = PaliGemmaConfig(
        architectures=["PaliGemmaForConditionalGeneration"],
        vision_config=SiglipVisionConfig(
            image_size=56, patch_size=14, vision_use_head=False, **VISION
        ),
        text_config=GemmaConfig(
            architectures=["GemmaForCausalLM"], vocab_size=len(tokenizer), **TEXT
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        vocab_size=len(tokenizer),
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
    )
    return _save(path, config, processor)


def make_lfm2_vl(path: Path) -> Path:
    """LFM2-VL: short convolutions between the attention layers."""
    names = {
        "image_token": IMAGE,
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    tokenizer = make_tokenizer(512, tuple(names.values()), names=names)
    config = Lfm2VlConfig(
        architectures=["Lfm2VlForConditionalGeneration"],
        text_config=Lfm2Config(
            architectures=["Lfm2ForCausalLM"],
            vocab_size=len(tokenizer),
            layer_types=["conv", "full_attention"] * 2,
            **{k: v for k, v in TEXT.items() if k != "head_dim"},
        ),
        vision_config=Siglip2VisionConfig(num_patches=16, patch_size=14, **VISION),
        image_token_id=tokenizer.get_vocab()[IMAGE],
    )
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(encoder_patch_size=14),
        tokenizer=tokenizer,
        chat_template=chat_template(IMAGE),
    )
    return _save(path, config, processor)


def make_deepseek_vl2(path: Path) -> Path:
    """DeepSeek-VL2: multi-head latent attention. transformers has no class for its config."""
    tokenizer = make_tokenizer(512, (IMAGE,))
    tokenizer.save_pretrained(path)
    language = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "architectures": ["DeepseekV2ForCausalLM"],
        "kv_lora_rank": 32,
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    }
    config = {
        "model_type": "deepseek_vl_v2",
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "language_config": language,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def make_llama4(path: Path) -> Path:
    """Llama 4: layers whose attention ends at the last chunk border."""
    marks = ("image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator")
    tokenizer = make_tokenizer(512, ("<|image|>", *(f"<|{mark}|>" for mark in marks)))
    ids = tokenizer.get_vocab()
    config = Llama4Config(
        architectures=["Llama4ForConditionalGeneration"],
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "intermediate_size_mlp": 128,
            "num_local_experts": 2,
            "attention_chunk_size": 32,
        },
        vision_config={
            **VISION,
            "intermediate_size": 128,
            "image_size": 56,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
        image_token_index=ids["<|patch|>"],
    )
    processor = Llama4Processor(
        image_processor=Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4),
        tokenizer=tokenizer,
    )
    return _save(path, config, processor)


def _save(path: Path, config: Any, processor: Any) -> Path:
    config.save_pretrained(path)
    processor.save_pretrained(path)
    return path
