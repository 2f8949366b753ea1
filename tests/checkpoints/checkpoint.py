"""What the tiny checkpoints have in common: sizes of the text model, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from checkpoints.tokenizer import unwritable
from checkpoints.weights import randomise, rename_weights

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    **SPECIAL,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write(
    path: Path,
    model: Any,
    processor: Any,
    seed: int,
    rename: Callable[[str], str] | None = None,
) -> Path:
    """Fill the model with random weights and save it with its processor; returns the folder.

    rename: from the names of transformers to those that vLLM looks for.
    """
    randomise(model, seed, never=unwritable(processor.tokenizer), eos=2)
    model.generation_config = GenerationConfig(**SPECIAL)
    model.save_pretrained(path)
    if rename is not None:
        rename_weights(path, rename)
    processor.save_pretrained(path)
    return path
