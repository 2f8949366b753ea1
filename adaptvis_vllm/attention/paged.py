"""Steered rows over the paged KV caches of vLLM's GPU backends, by the Triton kernel.

FLASH_ATTN, TRITON_ATTN and FLASHINFER hand their layers the cache in one logical order,
[blocks, kv_heads, block, 2 * head_dim], whatever lies behind it in memory; the kernel
reads it in place through its strides.
"""

from __future__ import annotations

from typing import Any

import torch

from adaptvis_vllm.plan import StepRows

_FP8 = {"fp8": None, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
# What the kernel reads; vLLM's other cache types keep scales or packed values in the cache.
CACHE_DTYPES = ("auto", "float16", "bfloat16", *_FP8)


def recompute(
    impl: Any,
    layer: Any,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: Any,
    output: torch.Tensor,
    rows: StepRows,
) -> None:
    """Overwrite output[rows] with steered attention; no host sync.

    query, output: [num_tokens, num_heads, head_dim] or flat in the last two. kv_cache:
    [blocks, kv_heads, block, 2 * head_dim], any strides. metadata: the backend's, with
    `block_table` [num_reqs, blocks per request] int32.
    """
    from adaptvis_vllm.kernels import steered_attention

    shape = (-1, impl.num_heads, impl.head_size)
    key_cache, value_cache = kv_cache.transpose(1, 2).split(impl.head_size, dim=-1)
    k_scale = v_scale = None
    query = query.view(shape)
    if layer.kv_cache_dtype in _FP8:
        if key_cache.element_size() == 1 and not key_cache.dtype.is_floating_point:
            fp8 = _FP8[layer.kv_cache_dtype] or _platform_fp8()
            key_cache, value_cache = key_cache.view(fp8), value_cache.view(fp8)
        k_scale, v_scale = layer._k_scale, layer._v_scale
        if query.element_size() == 1:  # quantised by the layer, for kernels that want it so
            query = query.to(output.dtype)
            k_scale = k_scale * layer._q_scale
    steered_attention(
        output.view(shape),
        query,
        key_cache,
        value_cache,
        metadata.block_table,
        *rows.tensors(),
        scale=impl.scale,
        max_kv_len=rows.max_kv_len,
        window=layer.sliding_window or 0,
        soft_cap=impl.logits_soft_cap or 0.0,
        sinks=impl.sinks,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def _platform_fp8() -> torch.dtype:
    from vllm.platforms import current_platform

    return current_platform.fp8_dtype()
