"""Steered attention in plain torch: the definition that the Triton kernel is held to."""

from collections.abc import Callable

import torch

# s: the scaled logits of image positions, a: the row's alpha. In the order of `gpu.config.RULES`.
RULES: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    lambda s, a: a * s,  # multiply: AdaptVis, ScalingVis
    lambda s, a: s + a.log(),  # add_log: PASTA
    lambda s, a: s + a * s.abs(),  # pai: PAI
)


def steered_attention_reference(
    out: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    key_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
    value_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
    block_table: torch.Tensor,  # [num_reqs, max_blocks] int32
    rows: torch.Tensor,  # [R] int32
    reqs: torch.Tensor,  # [R] int32
    kv_lens: torch.Tensor,  # [R] int32
    slots: torch.Tensor,  # [R] int32
    alpha: torch.Tensor,  # [num_slots] float32
    span_words: torch.Tensor,  # [W] int32
    span_starts: torch.Tensor,  # [R] int32
    span_lens: torch.Tensor,  # [R] int32
    rules: torch.Tensor,  # [R] int32, index in `RULES`
    heads: torch.Tensor,  # [R, HW] int32, bitmap of the heads that are steered
    *,
    scale: float,
    max_kv_len: int,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,  # [num_heads]
    k_scale: float | torch.Tensor | None = None,
    v_scale: float | torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Overwrite the steered rows of `out`, one row at a time, computing in `dtype`.

    s[j] = scale * (q . k_j);  s[j] = rule(s[j], alpha) where j is an image position and the head
    is steered
    out  = softmax(soft_cap(s) with the sink) @ v
    """
    block_size, group = key_cache.shape[1], query.shape[1] // key_cache.shape[2]
    for i in range(len(rows)):
        kv_len = int(kv_lens[i])
        if kv_len <= 0:
            continue
        first = max(kv_len - window, 0) if window > 0 else 0
        position = torch.arange(first, kv_len, device=query.device)
        block = block_table[reqs[i], position // block_size].long()
        k = key_cache[block, position % block_size].to(dtype).repeat_interleave(group, 1)
        v = value_cache[block, position % block_size].to(dtype).repeat_interleave(group, 1)
        s = scale * torch.einsum("hd,khd->hk", query[rows[i]].to(dtype), k)
        if k_scale is not None:
            s = s * k_scale
        image = _in_bitmap(position, span_words, int(span_starts[i]), int(span_lens[i]))
        head = torch.arange(query.shape[1], device=query.device)
        on = _in_bitmap(head, heads[i], 0, heads.shape[1])
        steered = RULES[int(rules[i])](s, alpha[slots[i]].to(dtype))
        s = torch.where(on[:, None] & image, steered, s)
        if soft_cap > 0:
            s = soft_cap * torch.tanh(s / soft_cap)
        if sinks is not None:
            s = torch.cat([s, sinks.to(dtype)[:, None]], 1)
        p = torch.softmax(s, 1)[:, : len(position)]
        o = torch.einsum("hk,khd->hd", p, v)
        if v_scale is not None:
            o = o * v_scale
        out[rows[i]] = o.to(out.dtype)


def _in_bitmap(
    position: torch.Tensor, words: torch.Tensor, start: int, length: int
) -> torch.Tensor:  # [len(position)] bool
    word = position // 32
    inside = word < length
    word = torch.where(inside, word + start, 0)
    bits = words[word] if len(words) else torch.zeros_like(position)
    return inside & ((bits >> (position % 32)) & 1).bool()


def attention_weights_reference(
    out: torch.Tensor,  # [N] float16 or wider
    query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    key_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
    block_table: torch.Tensor,
    rows: torch.Tensor,  # [E] int32, and so on as in `gpu.weights.attention_weights`
    reqs: torch.Tensor,
    kv_lens: torch.Tensor,
    slots: torch.Tensor,
    alpha: torch.Tensor,
    span_words: torch.Tensor,
    span_starts: torch.Tensor,
    span_lens: torch.Tensor,
    rules: torch.Tensor,
    heads: torch.Tensor,
    own: torch.Tensor,
    positions: torch.Tensor,
    pos_starts: torch.Tensor,
    pos_lens: torch.Tensor,
    offsets: torch.Tensor,
    *,
    key: torch.Tensor,  # [num_tokens, num_kv_heads, head_dim], as the cache would hold it
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: float | torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Write the attention weights of each entry's positions, one entry at a time, in `dtype`."""
    block_size, group = key_cache.shape[1], query.shape[1] // key_cache.shape[2]
    for i, offset in enumerate(offsets.tolist()):
        if offset < 0:
            continue
        kv_len, row = int(kv_lens[i]), int(rows[i])
        position = torch.arange(kv_len, device=query.device)
        block = block_table[reqs[i], position // block_size].long()
        k = key_cache[block, position % block_size].to(dtype)
        if own[i]:
            k[-1] = key[row].to(dtype)
        s = scale * torch.einsum("hd,khd->hk", query[row].to(dtype), k.repeat_interleave(group, 1))
        if k_scale is not None:
            s = s * k_scale
        image = _in_bitmap(position, span_words, int(span_starts[i]), int(span_lens[i]))
        head = torch.arange(query.shape[1], device=query.device)
        on = _in_bitmap(head, heads[i], 0, heads.shape[1])
        steered = RULES[int(rules[i])](s, alpha[slots[i]].to(dtype))
        s = torch.where(on[:, None] & image, steered, s)
        if soft_cap > 0:
            s = soft_cap * torch.tanh(s / soft_cap)
        if window > 0:
            s[:, : max(kv_len - window, 0)] = -torch.inf
        if sinks is not None:
            s = torch.cat([s, sinks.to(dtype)[:, None]], 1)
        p = torch.softmax(s, 1)[:, :kv_len]
        listed = positions[pos_starts[i] : pos_starts[i] + pos_lens[i]].long()
        text = p * ~image
        rest = [text[:, :1], text[:, 1:].sum(1, keepdim=True)]
        found = torch.cat([p[:, listed], *rest], 1)
        out[offset : offset + found.numel()] = found.flatten().to(out.dtype)
