"""Steered rows over the paged KV cache of vLLM's CPU backend (`CPU_ATTN`), in torch.

A block of one kv head holds, by the layer's `isa`:
    vec, vec16, neon, ...  K as [head_dim, block], V as [block, head_dim]
    amx                    K as [block/16, head_dim/2, 16, 2], V as [head_dim/16, block/2, 16, 2]

Both products of attention are weighted sums of lines of the cache: logits of a block are the
lines of K weighted by q, and the answer is the lines of V weighted by the softmax. torch's
`embedding_bag` is that sum and reads the cache in place, at about the speed of memory. It
rounds sums to the cache's type, so of 16 bits the logits are summed once more for what the
rounding lost. The amx layout, whose lines hold pairs, is copied to float32 first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding_bag

from adaptvis_vllm.plan import StepRows

CACHE_DTYPES = ("auto", "float16", "bfloat16")
COPY_BYTES = 4 << 20  # at once, so that copies stay in the processor's caches


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
    block = kv_cache.shape[2]
    step = _for_step(rows, metadata, kv_cache, heads, dim, impl.sliding_window)
    amx = layer.isa == "amx"
    q = query.view(-1, heads, dim).index_select(0, rows.rows[step.row])  # [T, H, dim]
    power = 2.0 ** round(math.log2(impl.scale))  # keeps float16 from overflow and is exact
    if amx:
        logits = _unpacked_sums(q.float() * power, kv_cache, step, 0)
    elif kv_cache.dtype == torch.float32:
        logits = _sums(q * power, kv_cache.view(-1, block), step.k_lines)
    else:
        logits = _exact_sums(q.to(kv_cache.dtype) * power, kv_cache, step)
    logits = logits.view(-1, heads, block) * (step.factor * (impl.scale / power))
    if impl.logits_soft_cap:
        logits = impl.logits_soft_cap * torch.tanh(logits / impl.logits_soft_cap)
    logits = logits.masked_fill_(step.hidden, float("-inf"))
    # One softmax over the blocks of each row; rows with fewer blocks than others are padded.
    padded = logits.new_full((step.num_rows, heads, step.most, block), float("-inf"))
    padded[step.row, :, step.place] = logits
    padded = padded.view(step.num_rows, heads, -1)
    if impl.sinks is not None:
        sinks = impl.sinks.float().view(1, heads, 1).expand(step.num_rows, -1, -1)
        weights = torch.cat([padded, sinks], -1).softmax(-1)[..., :-1]
    else:
        weights = padded.softmax(-1)
    weights = weights.unflatten(-1, (step.most, block))[step.row, :, step.place]  # [T, H, block]
    if amx:
        sums = _unpacked_sums(weights, kv_cache, step, 1)
    else:
        sums = _sums(weights.to(kv_cache.dtype), kv_cache.view(-1, dim), step.v_lines).float()
    result = sums.new_zeros(step.num_rows, heads * dim)
    result.index_add_(0, step.row, sums.view(-1, heads * dim))
    output.view(-1, heads, dim).index_copy_(
        0, rows.rows.long(), result.view(-1, heads, dim).to(output.dtype)
    )


def _sums(weights: torch.Tensor, table: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Sum over j of weights[.., j] * table[lines[.., j]]; weights [T, H, J] -> [T * H, width]."""
    return embedding_bag(
        lines.flatten(0, 1), table, mode="sum", per_sample_weights=weights.flatten(0, 1)
    )


def _exact_sums(q: torch.Tensor, kv_cache: torch.Tensor, step: _Step) -> torch.Tensor:
    """Logits [T * H, block] in float32 of K in 16 bits, before the scale.

    The rounded sums r are lines of the table too; the sums less r round to what r lacks.
    q: [T, H, dim], of the cache's type.
    """
    _, groups, block, _ = kv_cache.shape
    heads, dim = q.shape[1:]
    pages = kv_cache.view(-1, block * dim)  # K of a kv head, its V, K of the next one, ..
    chunk = max(1, COPY_BYTES // (groups * block * dim * 2))
    most = min(chunk, len(step.blocks))
    end = most * groups * dim
    if step.scratch is None:
        own = end + torch.arange(most * heads).view(most, heads, 1)
        lines = torch.cat([_page_lines(most, groups, heads // groups, dim), own], -1).int()
        step.scratch = pages.new_empty(end + most * heads, block), lines
    table, lines = step.scratch
    q = torch.cat([q, q.new_full((*q.shape[:2], 1), -1.0)], -1)
    sums = []
    for first in range(0, len(step.blocks), chunk):
        ids = step.k_pages[first : first + chunk].flatten()
        count = len(ids) // groups
        copies = table[: len(ids) * dim].view(len(ids), -1)
        torch.index_select(pages, 0, ids, out=copies)
        some, here = q[first : first + chunk], lines[:count]
        rounded = _sums(some[..., :dim], table, here[..., :dim])
        table[end : end + len(rounded)] = rounded
        sums.append(rounded.float() + _sums(some, table, here))
    return torch.cat(sums)


def _page_lines(count: int, groups: int, members: int, high: int) -> torch.Tensor:
    """[count, heads, high]: the lines of a table of pages, for each query head."""
    first = torch.arange(count * groups).view(count, groups, 1) * high
    return (first + torch.arange(high)).repeat_interleave(members, 1)


def _unpacked_sums(
    weights: torch.Tensor, kv_cache: torch.Tensor, step: _Step, part: int
) -> torch.Tensor:
    """`_sums` over float32 copies of the amx layout. part: 0 for K, 1 for V."""
    _, groups, block, twice = kv_cache.shape
    dim = twice // 2
    high, wide = (dim, block) if part == 0 else (block, dim)
    pages = kv_cache.view(-1, block * dim)
    chunk = max(1, COPY_BYTES // (groups * block * dim * 4))
    most = min(chunk, len(step.blocks))
    lines = _page_lines(most, groups, weights.shape[1] // groups, high).int()
    sums = []
    for first in range(0, len(step.blocks), chunk):
        ids = step.k_pages[first : first + chunk].flatten() + part
        copy = _unpack(pages.index_select(0, ids).float(), high, wide)
        if part == 1:  # what lies behind a row's end is no part of the answer: 0 * NaN
            copy = copy.view(-1, groups, block, dim)
            copy = copy.masked_fill_(step.stale[first : first + chunk], 0.0)
        some = weights[first : first + chunk]
        sums.append(_sums(some, copy.view(-1, wide), lines[: len(some)]))
    return torch.cat(sums)


def _unpack(pages: torch.Tensor, high: int, wide: int) -> torch.Tensor:
    """Pages as amx stores them, [P, block * dim] -> K [P, dim, block] or V [P, block, dim].

    Both are tiles of 16 columns whose lines hold two neighbours of the summed dimension.
    """
    tiles = pages.view(-1, wide // 16, high // 2, 16, 2)
    return tiles.permute(0, 2, 4, 1, 3).reshape(-1, high, wide)


@dataclass
class _Step:
    """What all layers of one block table, shape and window share.

    T: blocks of all rows, those that a window hides left out. row, place: [T] int64, the row
    of each block and which of its blocks it is. most: of one row. blocks: [T] int64. k_lines:
    [T, H, dim] int, lines of K for each query head. v_lines: [T, H, block] int, of V. factor:
    [T, 1, block] float32. hidden: [T, 1, block] bool. stale: [T, 1, block, 1] bool, behind a
    row's end. k_pages: [T, G] int64, pages of K; that of V is the next. scratch: the table of
    `_exact_sums` and its lines.
    """

    num_rows: int
    most: int
    row: torch.Tensor
    place: torch.Tensor
    blocks: torch.Tensor
    k_lines: torch.Tensor
    v_lines: torch.Tensor
    factor: torch.Tensor
    hidden: torch.Tensor
    stale: torch.Tensor
    k_pages: torch.Tensor
    scratch: tuple[torch.Tensor, torch.Tensor] | None = None


def _for_step(
    rows: StepRows, metadata: Any, kv_cache: torch.Tensor, heads: int, dim: int, window: int
) -> _Step:
    _, groups, block, _ = kv_cache.shape
    key = (metadata.block_table.data_ptr(), kv_cache.shape, heads, window)
    if key in rows.derived:
        return rows.derived[key]
    lens = rows.kv_lens.long()
    first = (lens - window).clamp(min=0) // block if window > 0 else torch.zeros_like(lens)
    counts = (lens - 1) // block + 1 - first
    row = torch.repeat_interleave(torch.arange(len(lens)), counts)
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    number = first[row] + place
    blocks = metadata.block_table[rows.reqs.long()[row], number].long()

    positions = number[:, None] * block + torch.arange(block)  # [T, block]
    ends = lens[row, None]
    stale = positions >= ends
    hidden = stale | (positions < ends - window) if window > 0 else stale
    word = positions // 32
    inside = word < rows.span_lens[row, None]
    index = rows.span_starts[row, None] + word
    bits = rows.span_words[index.clamp(max=len(rows.span_words) - 1)] >> (positions % 32).int() & 1
    alpha = rows.alpha.index_select(0, rows.slots.long())
    factor = torch.where((bits == 1) & inside, alpha[row, None], 1.0)

    # Lines of the cache: those of K are `block` wide and `dim` a page, those of V the reverse.
    pages = (blocks[:, None] * groups + torch.arange(groups)) * 2  # [T, G]
    k_lines = pages[..., None] * dim + torch.arange(dim)
    # Weights of stale positions are 0; a line that is surely a number stands in for theirs.
    lines = torch.where(stale, 0, torch.arange(block))
    v_lines = (pages[..., None] + 1) * block + lines[:, None]
    # torch reads int32 faster; it does for 2 ** 31 lines.
    kind = torch.int32 if kv_cache.numel() >> 31 < min(dim, block) else torch.int64
    members = heads // groups
    step = _Step(
        num_rows=len(lens),
        most=int(counts.max()),
        row=row,
        place=place,
        blocks=blocks,
        k_lines=k_lines.to(kind).repeat_interleave(members, 1),
        v_lines=v_lines.to(kind).repeat_interleave(members, 1),
        factor=factor[:, None],
        hidden=hidden[:, None],
        stale=stale[:, None, :, None],
        k_pages=pages,
    )
    rows.derived[key] = step
    return step
