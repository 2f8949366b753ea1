"""What both model runners need once their model and KV cache exist."""

from __future__ import annotations

from typing import Any

from vllm.config import get_layers_from_vllm_config
from vllm.distributed.parallel_state import get_tp_group
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionType

from adaptvis_vllm.engine.attention import wrap
from adaptvis_vllm.engine.compat import refuse_config, steerable_model
from adaptvis_vllm.engine.steps import Steering


def make_steering(vllm_config: Any, device: Any, model: Any) -> Steering | None:
    """Wrap attention layers and head of a worker's model; None where prompts hold no images.

    ValueError with one sentence for what cannot be steered.
    """
    if not steerable_model(vllm_config.model_config):
        return None
    reason = refuse_config(vllm_config)
    if reason:
        raise ValueError(reason)
    layers = attention_layers(vllm_config)
    group = get_tp_group()
    heads = {index: layer.impl.num_heads for index, (_, layer) in sorted(layers.items())}
    several = group.world_size > 1
    steering = Steering(
        device,
        heads,
        group.broadcast if several else None,
        (lambda t: group.all_gather(t[None], 0)) if several else None,
        group.rank_in_group,
    )
    wrap.install(layers, steering)
    _wrap_head(model, steering)
    return steering


def _wrap_head(model: Any, steering: Steering) -> None:
    """The logits of side rows are computed with everybody else's: the head is read once."""
    head = getattr(model.compute_logits, "adaptvis_base", model.compute_logits)

    def compute_logits(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if steering.choosing is None:
            return head(hidden_states, *args, **kwargs)
        return steering.logits(hidden_states, lambda rows: head(rows, *args, **kwargs))

    compute_logits.adaptvis_base = head  # type: ignore[attr-defined]
    model.compute_logits = compute_logits


def attention_layers(vllm_config: Any) -> dict[int, tuple[str, Any]]:
    """By index the name and the vLLM `Attention` of each decoder layer of the model made last."""
    return {
        extract_layer_index(name): (name, layer)
        for name, layer in get_layers_from_vllm_config(vllm_config, Attention).items()
        if layer.attn_type == AttentionType.DECODER
    }
