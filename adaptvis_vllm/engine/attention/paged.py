"""Steered rows over the paged KV caches of vLLM's GPU backends, by the Triton kernel.

FLASH_ATTN, TRITON_ATTN and FLASHINFER hand their layers the cache in one logical order,
[blocks, kv_heads, block, 2 * head_dim], whatever lies behind it in memory; the kernel
reads it in place through its strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adaptvis_vllm.engine.attention.layer import LayerRows
from adaptvis_vllm.engine.plan import StepRows, WeightRows

_FP8 = {"fp8": None, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
# What the kernel reads; vLLM's other cache types keep scales or packed values in the cache.
CACHE_DTYPES = ("auto", "float16", "bfloat16", *_FP8)


def caches(layers: Sequence[Any]) -> Any:
    """`kernels.gpu.commit.Caches` of vLLM `Attention` layers that lie in paged caches."""
    from adaptvis_vllm.kernels.gpu.commit import Caches

    return Caches([_views(layer, layer.kv_cache) for layer in layers])


class PagedLayer(LayerRows):
    """The steered rows of one vLLM `Attention` layer. index: its decoder layer index."""

    def __init__(self, layer: Any, index: int, steering: Any) -> None:
        super().__init__(layer, steering)
        self.line = None if steering is None else steering.cache_lines[index]
        self.float8 = layer.kv_cache_dtype in _FP8
        self.options |= {"window": layer.sliding_window or 0, "sinks": layer.impl.sinks}
        self.kv_cache: torch.Tensor | None = None  # that of `kernel`
        self.kernel: Any = None

    def recompute(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: Any,
        output: torch.Tensor,
        rows: StepRows,
    ) -> None:
        """Overwrite output[rows] with steered attention, and keep side rows' keys and values; no
        host sync.

        query, output: [num_tokens, num_heads, head_dim] or flat in the last two; key, value with
        num_kv_heads. kv_cache: [blocks, kv_heads, block, 2 * head_dim], any strides. metadata: the
        backend's, with `block_table` [num_reqs, blocks per request] int32.
        """
        if kv_cache is not self.kv_cache:
            from adaptvis_vllm.kernels.gpu.launch import Layer

            self.kernel = Layer(*_views(self.layer, kv_cache), **self.options)
            self.kv_cache = kv_cache
        query, k_scale, k_own = self._query(query, output.dtype)
        v_scale = self.layer._v_scale if self.float8 else None
        self.kernel(
            output.view(self.queries),
            query,
            metadata.block_table,
            *rows.tensors(),
            max_kv_len=rows.max_kv_len,
            k_scale=k_scale,
            v_scale=v_scale,
            sides=self._sides(rows, key, value, k_own) if rows.num_sides else None,
        )

    def _query(self, query: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, Any, Any]:
        """With heads apart; the scale of its products with the cache's keys, and the keys' own."""
        query = query.view(self.queries)
        if not self.float8:
            return query, None, None
        scale = self.layer._k_scale
        if query.element_size() > 1:
            return query, scale, scale
        # Quantised by the layer, for kernels that want it so.
        return query.to(dtype), scale * self.layer._q_scale, scale

    def weigh(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: Any,
        rows: WeightRows,
    ) -> None:
        """Write the attention weights of rows; arguments as of `recompute`. No host sync."""
        from adaptvis_vllm.kernels.gpu.weights import attention_weights

        query, k_scale, k_own = self._query(query, key.dtype)
        attention_weights(
            *(rows.out, query, _views(self.layer, kv_cache)[0], metadata.block_table),
            *rows.tensors(),
            key=key.view(self.keys),
            k_scale=k_scale,
            k_own=k_own,
            **self.options,
        )

    def _sides(self, rows: StepRows, key: torch.Tensor, value: torch.Tensor, scale: Any) -> Any:
        """`kernels.gpu.sides.Sides` of a step."""
        from adaptvis_vllm.kernels.gpu.sides import Sides

        plan = self.steering.plan
        if plan.kept is None:
            plan.kept = self.steering.caches.keep(plan.num_kept)
            if plan.num_kept:
                plan.commits.append(plan.kept.commit)
        kept, where = plan.kept.layer(self.line)
        own_rows = (key.view(self.keys), value.view(self.keys))
        return Sides(rows.own, rows.sides.start, *own_rows, kept, where, scale)


def _views(layer: Any, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value cache, each [blocks, block, kv_heads, head_dim], of the dtype they hold."""
    key_cache, value_cache = kv_cache.transpose(1, 2).split(layer.impl.head_size, dim=-1)
    if layer.kv_cache_dtype in _FP8 and not key_cache.dtype.is_floating_point:
        fp8 = _FP8[layer.kv_cache_dtype] or _platform_fp8()
        key_cache, value_cache = key_cache.view(fp8), value_cache.view(fp8)
    return key_cache, value_cache


def _platform_fp8() -> torch.dtype:
    from vllm.platforms import current_platform

    return current_platform.fp8_dtype()
