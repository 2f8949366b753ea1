"""A model that takes no images; its weights are the engine's dummies (`--load-format dummy`)."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig

from checkpoints.checkpoint import TEXT
from checkpoints.tokenizer import chat_template, make_tokenizer


def make_text(path: Path) -> Path:
    """Its config and tokenizer in a new folder."""
    tokenizer = make_tokenizer(512, ())
    tokenizer.chat_template = chat_template("<image>")
    tokenizer.save_pretrained(path)
    config = LlamaConfig(architectures=["LlamaForCausalLM"], vocab_size=len(tokenizer), **TEXT)
    config.save_pretrained(path)
    return path
