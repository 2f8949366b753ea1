"""Which prompt positions hold image and video embeddings, as a transformers model sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

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


def count_on_behind_videos(model: Any) -> None:
    """Let the M-RoPE positions behind a video begin after its largest, in time as in space.

    model: of transformers, any family; Qwen2-VL and Qwen2.5-VL are changed. So they were
    published, and so vLLM counts. transformers 5.19 counts on from the video's height and width
    alone (github.com/huggingface/transformers/issues/45381).
    """
    if model.config.model_type not in ("qwen2_vl", "qwen2_5_vl"):
        return
    original = model.model.get_rope_index

    def get_rope_index(
        input_ids: torch.Tensor, *args: Any, mm_token_type_ids: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One prompt of N tokens: positions [3, 1, N], and what to add to N: [1, 1]."""
        kinds = {"mm_token_type_ids": mm_token_type_ids}
        positions, deltas = original(input_ids, *args, **kinds, **kwargs)
        edges = mm_token_type_ids[0].diff().nonzero()[:, 0] + 1
        for before, block in pairwise(positions.tensor_split(edges.cpu(), dim=-1)):
            block += before.max() + 1 - block.min()
        return positions, deltas.fill_(positions.max() + 1 - input_ids.shape[1])

    model.model.get_rope_index = get_rope_index
