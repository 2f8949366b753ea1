"""Put the recomputation of steered rows behind every decoder attention layer.

The base backend runs untouched over the whole batch; then, in steps that hold a steered row, that
row's output is overwritten, and rows that a request wants maps of are weighed. Other steps pay one
attribute test per layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adaptvis_vllm.engine.attention import cpu, paged
from adaptvis_vllm.engine.steps import Steering

# vLLM's `AttentionBackend.get_name()` -> what computes steered rows of a layer.
BACKENDS: dict[str, type[Any]] = {
    "CPU_ATTN": cpu.CpuLayer,
    "FLASH_ATTN": paged.PagedLayer,
    "FLASHINFER": paged.PagedLayer,
    "TRITON_ATTN": paged.PagedLayer,
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
    lines = [i for i, (_, layer) in layers.items() if rows_of(layer) is paged.PagedLayer]
    steering.cache_lines = {index: line for line, index in enumerate(lines)}
    if lines:
        steering.caches = paged.caches([layers[index][1] for index in lines])
    for index, (_, layer) in layers.items():
        layer.impl.forward = SteeredLayer(layer, index, steering)


def rows_of(layer: Any) -> type[Any]:
    return BACKENDS[layer.attn_backend.get_name()]


class SteeredLayer:
    """`impl.forward` of a layer, then the rows that the step's plan has for it."""

    def __init__(self, layer: Any, index: int, steering: Steering) -> None:
        self.adaptvis_base = base_of(layer.impl)
        self.index, self.steering = index, steering
        self.rows = rows_of(layer)(layer, index, steering)

    def __call__(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: Any,
        attn_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        result = self.adaptvis_base(
            layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs
        )
        plan = self.steering.plan
        if plan is not None and attn_metadata is not None and plan.by_layer:
            rows, weights = plan.by_layer[self.index], plan.weights_by_layer[self.index]
            if rows is not None:
                output = kwargs["output"] if "output" in kwargs else args[0]
                self.rows.recompute(query, key, value, kv_cache, attn_metadata, output, rows)
            if weights is not None:
                self.rows.weigh(query, key, kv_cache, attn_metadata, weights)
            plan.layers_done += rows is not None or weights is not None
        return result


def base_of(impl: Any) -> Callable[..., Any]:
    """vLLM's own `forward`: a cache that is made a second time wraps it again."""
    return getattr(impl.forward, "adaptvis_base", impl.forward)


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
