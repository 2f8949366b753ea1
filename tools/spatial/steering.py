"""The model's forward pass over such batches, with the last prompt rows' image logits scaled."""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spatial.batches import Batch

NAME = "spatial_steered"


class Steered:
    """A LLaVA whose language model attends through here; its vision tower stays as it is.

    In every layer s[n, j] = alpha * (q_n . k_j) / sqrt(d) for image tokens j and n the last
    prompt row of a question; the answer's rows, which follow it, are not scaled.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.alpha = model, 1.0
        self.scaled: torch.Tensor | None = None  # [B, S, S] bool
        for layer in model.model.language_model.layers:
            layer.self_attn.spatial_steered = self
        model.model.language_model.set_attn_implementation(NAME)
        # Training on a CPU takes twice as long with the gradients of PyTorch's own attention.
        model.model.vision_tower.set_attn_implementation("eager")

    def __call__(self, batch: Batch, alpha: float) -> tuple[torch.Tensor, ...]:
        """Logits after every question [B, K, V] and after its answer's word, and the vision
        tower's features [B, tokens, width]."""
        parts, ids, rows = self.model.model, batch["ids"], batch["rows"]
        pixels = batch["pixels"].to(self.model.dtype)
        features = parts.vision_tower(pixels).last_hidden_state[:, 1:]
        embeds = parts.language_model.embed_tokens(ids)
        image = parts.multi_modal_projector(features)
        columns = ids == self.model.config.image_token_index
        rank = (columns.cumsum(1) - 1).clamp(min=0)[..., None].expand_as(embeds)
        embeds = torch.where(columns[..., None], image.gather(1, rank), embeds)
        if alpha != 1:
            last = torch.zeros_like(columns).scatter(1, rows, True)
            self.alpha, self.scaled = alpha, last[:, :, None] & columns[:, None]
        try:
            hidden = parts.language_model(
                inputs_embeds=embeds,
                attention_mask=_visible(batch, columns)[:, None],
                position_ids=batch["position"],
                use_cache=False,
            ).last_hidden_state
        finally:
            self.scaled = None
        samples = torch.arange(len(ids), device=ids.device)[:, None]
        first, second = (self.model.lm_head(hidden[samples, r]).float() for r in (rows, rows + 1))
        return first, second, features


def _visible(batch: Batch, columns: torch.Tensor) -> torch.Tensor:
    """[B, S, S] bool: causal, every question apart from the others, and blind rows blind."""
    part = batch["part"]
    order = torch.arange(part.shape[1], device=part.device)
    seen = (order[:, None] >= order) & ((part[:, None] == 0) | (part[:, None] == part[:, :, None]))
    if "blind" in batch:
        question = (part - 1).clamp(min=0)
        before = order < batch["rows"].gather(1, question)
        blind = batch["blind"].gather(1, question) & before & (part > 0)
        seen &= ~(blind[:, :, None] & columns[:, None])
    return seen


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value: [B, H, S, d]; attention_mask: [B, 1, S, S] bool."""
    steered: Steered = module.spatial_steered
    scores = query @ key.transpose(2, 3) * scaling
    if steered.scaled is not None:
        scores = torch.where(steered.scaled[:, None], scores * steered.alpha, scores)
    weights = scores.masked_fill(~attention_mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
