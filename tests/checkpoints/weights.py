"""Random weights with which answers depend on the picture and on alpha."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# Per weight name: spread of the outputs for inputs of spread 1.
GAINS = {"q_proj": 1.6, "k_proj": 1.6, "o_proj": 1.5, "lm_head": 3.0}


@torch.no_grad()
def randomise(
    model: Any, seed: int, *, never: tuple[int, ...] = (), eos: int | None = None
) -> None:
    """Matrices are normal with std gain / sqrt(fan-in), embeddings with std 1.

    Norms stay 1. Gains of the attention spread logits enough that a scale matters; that of
    lm_head puts the confidence on both sides of the published thresholds. Tokens in `never`
    are not generated, `eos` more often than others.
    """
    tied = model.config.tie_word_embeddings
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        leaf = name.split(".")[-2]
        if parameter.dim() == 1 and name.endswith(".weight"):  # a norm
            # Tied embeddings repeat the last token unless the layers outweigh them.
            if tied and leaf.startswith("post_"):
                parameter.fill_(7.0)
            continue
        fan_in = parameter[0].numel()
        if parameter.dim() == 1:
            std = 0.1
        elif leaf == "embed_tokens" and tied:
            std = GAINS["lm_head"] / fan_in**0.5
        elif "embed" in leaf and parameter.dim() == 2:
            std = 1.0
        else:
            std = GAINS.get(leaf, 1.0) / fan_in**0.5
        parameter.normal_(0, std, generator=generator)
    head = model.get_output_embeddings().weight
    head[list(never)] = 0
    if eos is not None:
        head[eos] *= 1.3


def rename_weights(folder: Path, rename: Callable[[str], str]) -> None:
    """Rename the tensors of a checkpoint of one file."""
    path = folder / "model.safetensors"
    tensors = {rename(k): v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, **values: object) -> None:
    """Set top-level values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2))
