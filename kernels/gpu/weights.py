"""Attention weights of single rows over a paged KV cache, in Triton: what a map is made of.

For each entry, a row with query q and its own rule, heads and alpha, and j over the keys it sees:

    s[j] = scale * (q . k_j);  s[j] = rule(s[j], alpha) where j is an image position and the head
    is steered
    w    = softmax(soft_cap(s) with the sink)

is written for a list of positions, all image positions among them, and then two sums more: w[0] if
that is no image position, and those of all others that are none. K is read once for the sum of the
softmax, and at the listed positions once more, mostly out of a cache: so no row of logits, as long
as the context, has to be kept anywhere. `attention_weights_reference` is the same in torch.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .checks import kind
from .config import choose_tile, next_power_of_2
from .sides import FLOAT8
from .steer import _amount, _as_cached, _steer, _widen

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _logits(
    i_n,  # [BLOCK_N] positions
    m_n,
    b_q,  # [LANES, DIM_PAD]
    b_own,  # [LANES] the product with the row's own key, which stands at position i_own
    i_own,
    amount,  # [LANES], see `steer._amount`
    rule,
    scale,
    soft_cap,
    p_k,
    p_table,
    p_words,
    num_words,
    s_kb,
    s_kn,
    s_kd,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    USE_SOFT_CAP: tl.constexpr,
    E4M3_BITS: tl.constexpr,
):
    """[LANES, BLOCK_N] logits in the log2 domain, -inf without m_n; and which are the image's."""
    i_d = tl.arange(0, DIM_PAD)
    i_b = tl.load(p_table + i_n // BLOCK_SIZE, mask=m_n, other=0).to(tl.int64)
    p_bk = p_k + (i_b * s_kb + i_n % BLOCK_SIZE * s_kn)[:, None] + i_d[None, :] * s_kd
    b_k = tl.load(p_bk, mask=m_n[:, None] & (i_d < DIM)[None, :], other=0.0)
    b_k = _widen(b_k, b_q.dtype, E4M3_BITS)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    b_s = tl.where((i_n == i_own)[None, :], b_own[:, None], b_s) * scale
    b_w = tl.load(p_words + i_n // 32, mask=m_n & (i_n // 32 < num_words), other=0)
    is_image = ((b_w >> (i_n % 32)) & 1) != 0
    b_s = tl.where(is_image[None, :], _steer(b_s, amount[:, None], rule), b_s)
    if USE_SOFT_CAP:
        b_s = soft_cap * (1.0 - 2.0 / (tl.exp2(b_s * (2 * LOG2_E / soft_cap)) + 1.0))
    return tl.where(m_n[None, :], b_s * LOG2_E, float("-inf")), is_image


_LISTS = [
    "p_w",
    "p_table",
    "p_rows",
    "p_reqs",
    "p_lens",
    "p_slots",
    "p_alpha",
    "p_words",
    "p_starts",
    "p_num_words",
    "p_rules",
    "p_heads",
    "p_own",
    "p_positions",
    "p_pos_starts",
    "p_pos_lens",
    "p_offsets",
]


@triton.jit(do_not_specialize_on_alignment=_LISTS)
def weights_kernel(
    p_w,  # [N] float16
    p_q,
    p_k,
    p_table,
    p_rows,  # [E] token index of the row
    p_reqs,
    p_lens,
    p_slots,
    p_alpha,
    p_words,
    p_starts,
    p_num_words,
    p_rules,
    p_heads,
    p_own,  # [E] 1: key of the last position is the row's own, in p_key
    p_positions,  # positions of all entries, ascending
    p_pos_starts,
    p_pos_lens,
    p_offsets,  # [E] int64 into p_w, of [num_heads, positions + 2]; -1: nothing is written
    p_sinks,
    p_key,  # [num_tokens, num_kv_heads, DIM]
    k_own,  # the cache's own scale of keys
    scale,
    k_scale,
    window,
    soft_cap,
    s_qt,
    s_qh,
    s_kb,
    s_kn,
    s_kh,
    s_kd,
    s_table,
    s_key,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    USE_WINDOW: tl.constexpr,
    USE_SOFT_CAP: tl.constexpr,
    USE_SINKS: tl.constexpr,
    K_SCALE: tl.constexpr,
    E4M3_BITS: tl.constexpr,
    FLOAT8: tl.constexpr,
):
    """One program per (kv head, entry). Its lanes are the heads of the group."""
    i_h, i_e = tl.program_id(0), tl.program_id(1)
    offset = tl.load(p_offsets + i_e)
    if offset < 0:
        return
    kv_len = tl.load(p_lens + i_e)
    first = 0
    if USE_WINDOW:
        first = tl.maximum(kv_len - window, 0)
    i_l, i_d, i_t = tl.arange(0, LANES), tl.arange(0, DIM_PAD), tl.arange(0, BLOCK_N)
    i_qh = i_h * GROUP + i_l
    m_l = i_l < GROUP
    row = tl.load(p_rows + i_e).to(tl.int64)
    p_bq = p_q + row * s_qt + i_qh[:, None] * s_qh + i_d[None, :]
    b_q = tl.load(p_bq, mask=m_l[:, None] & (i_d < DIM)[None, :], other=0.0)
    p_heads += i_e.to(tl.int64) * ((tl.num_programs(0) * GROUP + 31) // 32)
    b_heads = tl.load(p_heads + i_qh // 32, mask=m_l, other=0)
    rule = tl.load(p_rules + i_e)
    alpha = tl.load(p_alpha + tl.load(p_slots + i_e))
    amount = _amount(alpha, rule, ((b_heads >> (i_qh % 32)) & 1) != 0)
    num_words = tl.load(p_num_words + i_e)
    p_words += tl.load(p_starts + i_e)
    p_table += tl.load(p_reqs + i_e).to(tl.int64) * s_table
    p_k += i_h.to(tl.int64) * s_kh

    own = tl.load(p_own + i_e)
    p_bk = p_key + row * s_key + i_h * DIM + i_d
    b_k = tl.load(p_bk, mask=i_d < DIM * own, other=0.0)
    _code, b_k = _as_cached(b_k, k_own, p_k, K_SCALE, FLOAT8)
    b_own = tl.sum(b_q.to(tl.float32) * b_k[None, :], 1)
    i_own = own * kv_len - 1
    if K_SCALE == "tensor":
        scale *= tl.load(k_scale)
    elif K_SCALE == "value":
        scale *= k_scale

    b_max = tl.full([LANES], float("-inf"), tl.float32)
    b_sum = tl.full([LANES], 0.0, tl.float32)
    b_sink = tl.full([LANES], float("-inf"), tl.float32)
    if USE_SINKS:
        b_sink = tl.load(p_sinks + i_qh, mask=m_l, other=0.0).to(tl.float32) * LOG2_E
        b_max = b_sink
        b_sum = tl.full([LANES], 1.0, tl.float32)
    for start in range(first, kv_len, BLOCK_N):
        b_s, _is_text = _logits(
            start + i_t, start + i_t < kv_len, b_q, b_own, i_own, amount, rule, scale, soft_cap,
            p_k, p_table, p_words, num_words, s_kb, s_kn, s_kd,
            DIM, DIM_PAD, BLOCK_SIZE, USE_SOFT_CAP, E4M3_BITS,
        )  # fmt: skip
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_sum = b_sum * tl.exp2(b_max - b_ref) + tl.sum(tl.exp2(b_s - b_ref[:, None]), 1)
        b_max = b_new
    lse = b_max + tl.log2(b_sum)

    count = tl.load(p_pos_lens + i_e)
    p_positions += tl.load(p_pos_starts + i_e)
    p_bw = p_w + offset + i_qh.to(tl.int64) * (count + 2)
    b_image = tl.full([LANES], 0.0, tl.float32)
    for start in range(0, count, BLOCK_N):
        m_n = start + i_t < count
        i_n = tl.load(p_positions + start + i_t, mask=m_n, other=0)
        b_s, is_image = _logits(
            i_n, m_n & (i_n >= first) & (i_n < kv_len), b_q, b_own, i_own, amount, rule, scale,
            soft_cap,
            p_k, p_table, p_words, num_words, s_kb, s_kn, s_kd,
            DIM, DIM_PAD, BLOCK_SIZE, USE_SOFT_CAP, E4M3_BITS,
        )  # fmt: skip
        b_w = tl.exp2(b_s - lse[:, None])
        b_image += tl.sum(tl.where(is_image[None, :], b_w, 0.0), 1)
        p_store = p_bw[:, None] + (start + i_t)[None, :]
        tl.store(p_store, b_w.to(tl.float16), mask=m_l[:, None] & m_n[None, :])
    m_n = i_t < tl.where(first == 0, 1, 0)
    b_s, is_image = _logits(
        tl.zeros_like(i_t), m_n, b_q, b_own, i_own, amount, rule, scale, soft_cap,
        p_k, p_table, p_words, num_words, s_kb, s_kn, s_kd,
        DIM, DIM_PAD, BLOCK_SIZE, USE_SOFT_CAP, E4M3_BITS,
    )  # fmt: skip
    b_first = tl.sum(tl.where(is_image[None, :], 0.0, tl.exp2(b_s - lse[:, None])), 1)
    b_rest = tl.maximum(1.0 - tl.exp2(b_sink - lse) - b_image - b_first, 0.0)
    tl.store(p_bw + count, b_first.to(tl.float16), mask=m_l)
    tl.store(p_bw + count + 1, b_rest.to(tl.float16), mask=m_l)


def attention_weights(
    out: torch.Tensor,  # [N] float16
    query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    key_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim], any strides
    block_table: torch.Tensor,  # [num_reqs, max_blocks] int32
    rows: torch.Tensor,  # [E] int32, and so on as of `launch.Layer`
    reqs: torch.Tensor,
    kv_lens: torch.Tensor,
    slots: torch.Tensor,
    alpha: torch.Tensor,
    span_words: torch.Tensor,
    span_starts: torch.Tensor,
    span_lens: torch.Tensor,
    rules: torch.Tensor,
    heads: torch.Tensor,
    own: torch.Tensor,  # [E] int32, 1: the key of the last position is key[row]
    positions: torch.Tensor,  # [sum of P] int32
    pos_starts: torch.Tensor,  # [E] int32
    pos_lens: torch.Tensor,  # [E] int32: P
    offsets: torch.Tensor,  # [E] int64 into out, of [num_heads, P + 2]; -1 leaves the entry out
    *,
    key: torch.Tensor,  # [num_tokens, num_kv_heads, head_dim], contiguous heads
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: float | torch.Tensor | None = None,
    k_own: float | torch.Tensor | None = None,  # the cache's scale, without the query's
) -> None:
    """Write the weights of each entry's positions; no host synchronisation."""
    num_kv_heads, dim = key_cache.shape[2:]
    if query.stride(2) != 1 or key.stride()[1:] != (dim, 1):
        raise ValueError("the heads of query and key must be contiguous")
    lists = (rows, reqs, kv_lens, slots, span_words, span_starts, span_lens, rules, heads, own)
    for t in (*lists, positions, pos_starts, pos_lens):
        if t.dtype != torch.int32 or not t.is_contiguous():
            raise ValueError("index tensors, span_words and positions must be contiguous int32")
    if offsets.dtype != torch.int64 or out.dtype != torch.float16 or not out.is_contiguous():
        raise ValueError("offsets must be int64, and out contiguous float16")
    e4m3_bits = _is_e4m3_bits(key_cache)
    weights_kernel[(num_kv_heads, rows.shape[0])](
        out,
        query,
        key_cache.view(torch.uint8) if e4m3_bits else key_cache,
        *(block_table, rows, reqs, kv_lens, slots, alpha, span_words, span_starts, span_lens),
        *(rules, heads, own, positions, pos_starts, pos_lens, offsets, sinks, key, k_own),
        *(scale, k_scale, window, soft_cap),
        *(*query.stride()[:2], *key_cache.stride(), block_table.stride(0), key.stride(0)),
        **weights_constants(
            num_heads=query.shape[1],
            num_kv_heads=num_kv_heads,
            head_dim=dim,
            block_size=key_cache.shape[1],
            kv_bytes=key_cache.element_size(),
            window=window,
            soft_cap=soft_cap,
            use_sinks=sinks is not None,
            k_scale=kind(k_scale),
            e4m3_bits=e4m3_bits,
            float8=FLOAT8.get(key_cache.dtype, ""),
        ),
        num_warps=WARPS,
        num_stages=STAGES,
    )


WARPS, STAGES = 4, 2


def weights_constants(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    kv_bytes: int,
    window: int,
    soft_cap: float,
    use_sinks: bool,
    k_scale: str,
    e4m3_bits: bool,
    float8: str,
) -> dict[str, Any]:
    """In the order of the kernel's parameters."""
    group = num_heads // num_kv_heads
    return {
        "GROUP": group,
        "LANES": max(16, next_power_of_2(group)),
        "DIM": head_dim,
        "DIM_PAD": next_power_of_2(head_dim),
        "BLOCK_SIZE": block_size,
        "BLOCK_N": choose_tile(head_dim=head_dim, kv_bytes=kv_bytes).block_n,
        "USE_WINDOW": window > 0,
        "USE_SOFT_CAP": soft_cap > 0,
        "USE_SINKS": use_sinks,
        "K_SCALE": k_scale,
        "E4M3_BITS": e4m3_bits,
        "FLOAT8": float8,
    }


def _is_e4m3_bits(key_cache: torch.Tensor) -> bool:
    from .launch import converts_e4m3

    return key_cache.dtype is torch.float8_e4m3fn and not converts_e4m3(key_cache.device)
