"""Steered rows over the paged KV cache of vLLM's CPU backend (`CPU_ATTN`).

A block of one kv head holds, by the layer's `isa`:
    vec, vec16, neon, ...  K as [head_dim, block], V as [block, head_dim]
    amx                    K as [block/16, head_dim/2, 16, 2], V as [head_dim/16, block/2, 16, 2]

`kernels/cpu.cpp` reads it in place. Where that cannot be compiled, blocks are copied and
`kernels/reference.py` computes the same in torch, some 15 times slower.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

from adaptvis_vllm.kernels import cpu as kernel
from adaptvis_vllm.kernels import steered_attention_reference
from adaptvis_vllm.plan import StepRows

CACHE_DTYPES = ("auto", "float16", "bfloat16")


@functools.cache
def compiled() -> bool:
    """Whether rows are computed by the compiled kernel. Compiles it, or warns, once."""
    reason = kernel.problem()
    if reason:
        text = f"adaptvis: steered rows are computed in torch, slowly: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return reason is None


def recompute(
    impl: Any,
    layer: Any,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: Any,
    output: torch.Tensor,
    rows: StepRows,
) -> None:
    """Overwrite output[rows] with steered attention.

    query, output: [num_tokens, num_heads, head_dim]. kv_cache: [blocks, kv_heads,
    block, 2 * head_dim] (`CPUAttentionBackendImpl.forward`). metadata: `CPUAttentionMetadata`.
    """
    shape = (-1, impl.num_heads, impl.head_size)
    steer = kernel.steer_rows if compiled() else in_torch
    steer(
        output.view(shape),
        query.view(shape),
        kv_cache,
        metadata.block_table,
        rows.rows,
        rows.reqs,
        rows.kv_lens,
        rows.slots,
        rows.alpha,
        rows.span_words,
        rows.span_starts,
        rows.span_lens,
        scale=impl.scale,
        packed=layer.isa == "amx",
        window=max(0, impl.sliding_window),
        soft_cap=impl.logits_soft_cap or 0.0,
        sinks=None if impl.sinks is None else impl.sinks.float().contiguous(),
    )


def in_torch(
    output: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    rows: torch.Tensor,
    reqs: torch.Tensor,
    kv_lens: torch.Tensor,
    slots: torch.Tensor,
    alpha: torch.Tensor,
    span_words: torch.Tensor,
    span_starts: torch.Tensor,
    span_lens: torch.Tensor,
    *,
    packed: bool,
    **options: Any,
) -> None:
    """What `kernels/cpu.py` does, with its arguments, one row at a time."""
    for i in range(len(rows)):
        one = slice(i, i + 1)
        count = -(-int(kv_lens[i]) // kv_cache.shape[2])
        key, value = _split(kv_cache[block_table[int(reqs[i]), :count].long()], packed)
        steered_attention_reference(
            output,
            query,
            key,
            value,
            torch.arange(count)[None],
            rows[one],
            torch.zeros(1, dtype=torch.int64),
            kv_lens[one],
            slots[one],
            alpha,
            span_words,
            span_starts[one],
            span_lens[one],
            max_kv_len=int(kv_lens[i]),
            dtype=torch.float32,
            **options,
        )


def _split(blocks: torch.Tensor, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, kv_heads, block, 2 * dim] -> keys and values, each [n, block, kv_heads, dim]."""
    n, heads, block, twice = blocks.shape
    dim = twice // 2
    key, value = blocks.view(n, heads, 2, -1).unbind(2)
    if packed:
        key = key.view(n, heads, block // 16, dim // 2, 16, 2).transpose(3, 4)
        value = value.view(n, heads, dim // 16, block // 2, 16, 2).permute(0, 1, 3, 5, 2, 4)
    else:
        key = key.view(n, heads, dim, block).transpose(2, 3)
    shape = (n, heads, block, dim)
    return key.reshape(shape).transpose(1, 2), value.reshape(shape).transpose(1, 2)
