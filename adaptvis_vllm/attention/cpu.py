"""Steered rows over the paged KV cache of vLLM's CPU backend (`CPU_ATTN`), in torch.

All rows of a step in one batched computation per layer, in float32.

A block of one kv head holds, by the layer's `isa`:
    vec, vec16, neon, ...  K as [head_dim, block], V as [block, head_dim]
    amx                    K as [block/16, head_dim/2, 16, 2], V as [head_dim/16, block/2, 16, 2]
"""

from __future__ import annotations

from typing import Any

import torch

from adaptvis_vllm.plan import StepRows

CACHE_DTYPES = ("auto", "float16", "bfloat16")


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
    heads, dim = impl.num_heads, impl.head_size
    _, groups, block, _ = kv_cache.shape
    blocks, factor, hidden, tail = _for_step(rows, metadata, block, impl.sliding_window)
    pages = kv_cache.view(kv_cache.shape[0], groups, 2, block * dim)
    k, v = pages[blocks].unbind(3)  # [R, N, G, block * dim]
    k, v = _unpack(k, v, block, dim, layer.isa)

    q = query.view(-1, heads, dim).index_select(0, rows.rows).float()
    q = q.view(len(q), 1, groups, heads // groups, dim) * impl.scale
    # [R, N, G, heads per group, block] -> one softmax over N and block.
    logits = torch.matmul(q, k) * factor
    if impl.logits_soft_cap:
        logits = impl.logits_soft_cap * torch.tanh(logits / impl.logits_soft_cap)
    logits = logits.masked_fill_(hidden, float("-inf")).permute(0, 2, 3, 1, 4)
    shape = logits.shape
    logits = logits.reshape(*shape[:3], -1)
    if impl.sinks is not None:
        sinks = impl.sinks.float().view(1, groups, heads // groups, 1).expand(*shape[:3], 1)
        weights = torch.cat([logits, sinks], -1).softmax(-1)[..., :-1]
    else:
        weights = logits.softmax(-1)
    weights = weights.view(shape).permute(0, 3, 1, 2, 4)  # [R, N, G, heads per group, block]
    # Stale values behind kv_len are no part of the answer, whatever they hold.
    line, last, keep = tail
    v[line, last] = torch.where(keep, v[line, last], 0.0)
    result = torch.matmul(weights, v).sum(1)
    output.view(-1, heads, dim).index_copy_(
        0, rows.rows.long(), result.view(-1, heads, dim).to(output.dtype)
    )


def _for_step(
    rows: StepRows, metadata: Any, block: int, window: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """What all layers of one block table and window share.

    Returns blocks [R, N] int64, factor and hidden [R, N, 1, 1, block], and for each row
    its last block with the positions that it fills.
    """
    key = (metadata.block_table.data_ptr(), block, window)
    if key in rows.derived:
        return rows.derived[key]
    count = -(-rows.max_kv_len // block)
    lens = rows.kv_lens.long()
    positions = torch.arange(count * block)
    seen = positions < lens[:, None]
    if window > 0:
        seen &= positions >= lens[:, None] - window
    word = (positions // 32).clamp(max=max(len(rows.span_words) - 1, 0))
    inside = positions // 32 < rows.span_lens[:, None]
    index = (rows.span_starts[:, None] + word).clamp(max=len(rows.span_words) - 1)
    bits = rows.span_words[index] >> (positions % 32).int() & 1
    scaled = (bits == 1) & inside
    alpha = rows.alpha.index_select(0, rows.slots.long())
    factor = torch.where(scaled, alpha[:, None], 1.0)
    # Blocks behind a row's end lead to the null block, which stays zero.
    used = torch.arange(count) * block < lens[:, None]
    table = metadata.block_table.index_select(0, rows.reqs.long())[:, :count].long()
    blocks = torch.where(used, table, 0)
    last = (lens - 1) // block
    line = torch.arange(len(lens))
    keep = (last[:, None] * block + torch.arange(block) < lens[:, None]).view(-1, 1, block, 1)
    shape = (len(lens), count, 1, 1, block)
    result = (blocks, factor.view(shape), ~seen.view(shape), (line, last, keep))
    rows.derived[key] = result
    return result


def _unpack(
    k: torch.Tensor, v: torch.Tensor, block: int, dim: int, isa: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """k, v [R, N, G, block * dim] as stored -> k [.., dim, block], v [.., block, dim] float32."""
    lead = k.shape[:3]
    if isa == "amx":
        k = k.view(*lead, block // 16, dim // 2, 16, 2).float()
        k = k.permute(0, 1, 2, 4, 6, 3, 5).reshape(*lead, dim, block)
        v = v.view(*lead, dim // 16, block // 2, 16, 2).float()
        v = v.permute(0, 1, 2, 4, 6, 3, 5).reshape(*lead, block, dim)
        return k, v
    return k.view(*lead, dim, block).float(), v.view(*lead, block, dim).float()
