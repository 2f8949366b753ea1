"""Which prompt positions hold image and video embeddings, as a transformers model sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MODALITIES = ("image", "video")


def feature_tokens(config: Any) -> dict[str, int]:
    """By modality the token whose embedding the model replaces by an image or video feature.

    config: of a transformers model. By these tokens the models merge features into the
    prompt, and refuse a prompt that has not one for each feature. ValueError without any.
    """
    tokens: dict[str, int] = {}
    for modality in MODALITIES:
        for owner in (config, getattr(config, "vision_config", None)):
            for name in (f"{modality}_token_id", f"{modality}_token_index"):
                if isinstance(getattr(owner, name, None), int):
                    tokens.setdefault(modality, getattr(owner, name))
    if "image" not in tokens:
        raise ValueError(f"{config.model_type} does not say which token stands for an image")
    return tokens


def steered_columns(found: Mapping[str, Sequence[int]], span: str) -> list[int]:
    """Positions that this span scales, ascending. found: what `feature_positions` returns."""
    wanted = (span,) if span in MODALITIES else MODALITIES
    positions = sorted(p for modality in wanted for p in found.get(modality, ()))
    if span == "interval" and positions:
        return list(range(positions[0], positions[-1] + 1))
    return positions


def feature_positions(tokens: dict[str, int], prompt: Sequence[int]) -> dict[str, list[int]]:
    """Positions by modality, ascending. prompt: token ids, placeholders expanded."""
    return {
        modality: [i for i, token in enumerate(prompt) if token == wanted]
        for modality, wanted in tokens.items()
    }
