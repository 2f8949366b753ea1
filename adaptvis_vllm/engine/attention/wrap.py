"""Put the recomputation of steered rows behind every decoder attention layer.

The base backend runs untouched over the whole batch; then, in steps that hold a steered
row, that row's output is overwritten. Other steps pay one attribute test per layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adaptvis_vllm.engine.attention import cpu, paged
from adaptvis_vllm.engine.steps import Steering

# (layer, its index, steering, query, key, value, kv_cache, metadata, output, rows): overwrites
# output's steered rows.
Recompute = Callable[..., None]

# vLLM's `AttentionBackend.get_name()` -> recomputation.
BACKENDS: dict[str, Recompute] = {
    "CPU_ATTN": cpu.recompute,
    "FLASH_ATTN": paged.recompute,
    "FLASHINFER": paged.recompute,
    "TRITON_ATTN": paged.recompute,
}
# Layers whose attention is more than a causal one over the prompt have classes of their own.
LAYERS = ("Attention",)


def refuse(layer_name: str, layer: Any) -> str | None:
    """Why this attention layer cannot be steered; None if it can."""
    backend = layer.attn_backend.get_name()
    if backend not in BACKENDS:
        return (
            f"attention backend {backend} is not supported; choose one of "
            f"{', '.join(sorted(BACKENDS))}"
        )
    kind = type(layer).__name__
    if kind not in LAYERS:
        return f"layer {layer_name} is a {kind}, which is not supported"
    shared = getattr(layer, "kv_sharing_target_layer_name", None)
    if shared is not None:
        return f"layer {layer_name} uses keys and values of {shared}, which is not supported"
    if getattr(layer.impl, "alibi_slopes", None) is not None:
        return f"layer {layer_name} uses ALiBi, which is not supported"
    dtypes = cpu.CACHE_DTYPES if backend == "CPU_ATTN" else paged.CACHE_DTYPES
    if layer.kv_cache_dtype not in dtypes:
        return (
            f"kv_cache_dtype {layer.kv_cache_dtype} is not supported with {backend}; choose one "
            f"of {', '.join(dtypes)}"
        )
    return None


def install(layers: dict[int, tuple[str, Any]], steering: Steering) -> None:
    """Wrap each layer's `impl.forward` once.

    layers: decoder layer index -> (layer name, vLLM `Attention`). ValueError names the
    first layer that cannot be served.
    """
    for name, layer in layers.values():
        reason = refuse(name, layer)
        if reason:
            raise ValueError(f"adaptvis: {reason}")
        if layer.attn_backend.get_name() == "CPU_ATTN":
            cpu.compiled()  # now, and not in somebody's first request
    lines = [i for i, (_, layer) in layers.items() if recompute_of(layer) is paged.recompute]
    steering.cache_lines = {index: line for line, index in enumerate(lines)}
    if lines:
        steering.caches = paged.caches([layers[index][1] for index in lines])
    for index, (_, layer) in layers.items():
        layer.impl.forward = steered(layer.impl, index, steering, recompute_of(layer))


def recompute_of(layer: Any) -> Recompute:
    return BACKENDS[layer.attn_backend.get_name()]


def steered(impl: Any, index: int, steering: Steering, recompute: Recompute) -> Callable[..., Any]:
    """`impl.forward`, then the recomputation where the step's plan has rows for this layer."""
    base = getattr(impl.forward, "adaptvis_base", impl.forward)

    def forward(
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: Any,
        attn_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        result = base(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)
        plan = steering.plan
        if plan is not None and attn_metadata is not None:
            rows = plan.by_layer[index] if plan.by_layer else None
            if rows is not None:
                output = kwargs["output"] if "output" in kwargs else args[0]
                tensors = (query, key, value, kv_cache, attn_metadata, output, rows)
                recompute(layer, index, steering, *tensors)
                plan.layers_done += 1
        return result

    forward.adaptvis_base = base  # type: ignore[attr-defined]
    return forward


def keep_block_table(
    original: Callable[..., Any],
    self: Any,
    common_attn_metadata: Any,
    ubatch_idx: int = 0,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `AttentionGroup.build_metadata`: the kernel needs the block table of the step."""
    metadata = original(self, common_attn_metadata, ubatch_idx, *args, **kwargs)
    if self.backend.get_name() == "FLASHINFER":
        mapped = self._with_kernel_block_table(common_attn_metadata, ubatch_idx)
        metadata.block_table = mapped.block_table_tensor
    return metadata
