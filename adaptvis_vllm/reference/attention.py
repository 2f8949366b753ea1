"""Eager attention with one scaled row, through transformers' attention interface."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "adaptvis_reference"
# Arguments that change the logits in ways `_steered_attention` does not know.
_UNKNOWN = ("position_bias",)


class Watcher(Protocol):
    """Who is shown the weights of every layer's attention."""

    def see(self, layer: int, weights: torch.Tensor) -> None:
        """weights: [1, heads, rows, columns], as `_attention` returns them."""


class Steering:
    """What the attention layers of one model shall do now. watch: None for nobody."""

    def __init__(self) -> None:
        self.alpha, self.rule = 1.0, "multiply"
        self.columns: torch.Tensor | None = None  # [prompt length] bool; None: nothing
        self.wanted: Mapping[int, int] = {}
        self.generated = False
        self.watch: Watcher | None = None
        self._calls: Counter[int] = Counter()

    def begin(
        self,
        alpha: float,
        rule: str,
        columns: torch.Tensor,
        heads: Mapping[int, int],
        generated: bool,
    ) -> None:
        """Change by alpha the given columns of the last prompt row.

        heads: layer -> mask of the query heads in which that is done, bit h for head h.
        generated: the rows of generated tokens too.
        """
        self.alpha, self.rule, self.columns, self.wanted = alpha, rule, columns, heads
        self.generated, self._calls = generated, Counter()

    def steered(self, scores: torch.Tensor, layer: int) -> torch.Tensor:
        """scores: [1, heads, columns], scaled, of one row."""
        if self.rule == "multiply":
            changed = scores * self.alpha
        elif self.rule == "add_log":
            changed = scores + math.log(self.alpha)
        else:
            changed = scores + self.alpha * scores.abs()
        assert self.columns is not None
        chosen = [bool(self.wanted[layer] >> head & 1) for head in range(scores.shape[1])]
        heads = torch.tensor(chosen, device=scores.device)[:, None]
        # Generated tokens are no image, and a layer with a window keeps the last columns alone.
        behind = self.columns.new_zeros(self._calls[layer] - 1)
        columns = torch.cat([self.columns, behind])[-scores.shape[-1] :]
        return torch.where(heads & columns, changed, scores)

    def end(self) -> frozenset[int]:
        """Scale no more; returns the layers that were scaled."""
        self.columns = None
        return frozenset(self._calls)

    def claims(self, layer: int, rows: int, columns: int) -> bool:
        """Whether this call is one to scale, in a chosen layer: the whole prompt, or behind it a
        generated token."""
        if self.columns is None or layer not in self.wanted:
            return False
        is_prompt = rows == columns == len(self.columns) and not self._calls[layer]
        if not is_prompt and not (self.generated and rows == 1 and self._calls[layer]):
            return False
        self._calls[layer] += 1
        return True


def install(decoder: Any, steering: Steering) -> frozenset[int]:
    """Route the decoder's attention through here; returns its layers' indices.

    The attention of vision towers stays what it is. ValueError if a layer of the decoder
    does not use transformers' attention interface.
    """
    found = {}
    for module in decoder.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and "Attention" in type(module).__name__:
            found[index] = module
            module.adaptvis_reference = steering
    if not found or not decoder._supports_attention_backend:
        raise ValueError(f"{type(decoder).__name__} has no attention that can be steered here")
    decoder.set_attn_implementation(NAME)
    return frozenset(found)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own eager attention, except for the call that holds the steered row.

    query: [1, heads, rows, d]; key, value: [1, kv heads, columns, d]; attention_mask:
    [1, 1, rows, columns], added to the logits. Returns [1, rows, heads, d] and weights.
    """
    steering: Steering | None = getattr(module, "adaptvis_reference", None)
    if steering and steering.claims(module.layer_idx, query.shape[2], key.shape[2]):
        given = (steering, module, query, key, value, attention_mask)
        out, weights = _steered_attention(*given, **kwargs)
    else:
        eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
        out, weights = eager(module, query, key, value, attention_mask, **kwargs)
    if steering and steering.watch:
        steering.watch.see(module.layer_idx, weights)
    return out, weights


def _steered_attention(
    steering: Steering,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """s[n, j] = rule((q_n . k_j) * scaling, alpha) for image positions j, n the last row.

    The rule comes after `scaling`, before soft cap and mask. In the order of operations
    of transformers' eager attention: alpha 1 changes no bit. s_aux: [heads], the logits of
    learned sinks, a column of its own that has no value.
    """
    for name in _UNKNOWN:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} uses {name}")
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores[:, :, -1] = steering.steered(scores[:, :, -1], module.layer_idx)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
        scores = scores - scores.max(dim=-1, keepdim=True).values
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = weights[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
