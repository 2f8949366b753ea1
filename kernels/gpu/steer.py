"""Steered attention over a paged KV cache, in Triton.

For each steered row, with q its query and j over the keys it sees:

    s[j] = scale * (q . k_j);  s[j] = rule(s[j], alpha) where j is an image position and the head
    is steered
    out  = softmax(soft_cap(s) with the sink) @ v

See `reference.steered_attention_reference` for the same in torch.

An entry is one row in its place, or one or two side rows, which follow each other in the batch
and in alpha. Their heads share a tile, so K and V are read once for both. The cache knows nothing
of a side row: its key and value at its last position come with it, are seen as the cache would
give them back, and those of the first `num_kept` rows are kept in the cache's dtype for
`commit.commit_kernel`.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def split_range(
    p_len,
    i_s,
    window,
    splits,
    USE_WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Positions [lo, hi) of split i_s, and how many splits are not empty.

    The range starts exactly where the window does, so only its last tile needs a mask.
    """
    kv_len = tl.load(p_len)
    first = 0
    if USE_WINDOW:
        first = tl.maximum(kv_len - window, 0)
    tiles = (kv_len - first + BLOCK_N - 1) // BLOCK_N
    per_split = (tiles + splits - 1) // splits
    lo = first + i_s * per_split * BLOCK_N
    hi = tl.minimum(lo + per_split * BLOCK_N, kv_len)
    used = (tiles + per_split - 1) // tl.maximum(per_split, 1)
    return lo, hi, used


@triton.jit
def _widen(x, dtype: tl.constexpr, E4M3_BITS: tl.constexpr):
    """A cache tile in the dot's dtype; exact, float8 included."""
    if E4M3_BITS:  # no hardware conversion: shift into float16, whose exponent bias is 8 larger
        bits = x.to(tl.uint16)
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def _amount(alpha, rule, is_on):
    """What `_steer` takes; for heads that are not steered what changes nothing."""
    return tl.where(is_on, tl.where(rule == 1, tl.log(alpha), alpha), tl.where(rule == 0, 1.0, 0.0))


@triton.jit
def _steer(s, amount, rule):
    """`config.RULES[rule]`. rule is a scalar, and one vector of lanes all that a loop must keep."""
    unit = tl.where(rule == 0, s, tl.where(rule == 1, 1.0, tl.abs(s)))
    return tl.where(rule == 0, 0.0, s) + amount * unit


@triton.jit
def _blocks(p_table, start, hi, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    i_n = start + tl.arange(0, BLOCK_N)
    return tl.load(p_table + i_n // BLOCK_SIZE, mask=i_n < hi, other=0)


@triton.jit
def _tile(
    b_block,  # [BLOCK_N] numbers of the cache blocks
    b_acc,  # [LANES, DIM_PAD]
    b_max,  # [LANES] running maximum, log2 domain
    b_sum,  # [LANES]
    b_q,  # [LANES, DIM_PAD]
    start,
    hi,
    amount,  # [LANES], see `_amount`
    rule,
    scale,
    soft_cap,
    p_k,
    p_v,
    p_table,
    p_words,
    num_words,
    s_kb,
    s_kn,
    s_kd,
    s_vb,
    s_vn,
    s_vd,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    USE_SOFT_CAP: tl.constexpr,
    E4M3_BITS: tl.constexpr,
    USE_MASK: tl.constexpr,
):
    """One online-softmax step over positions [start, start + BLOCK_N).

    Their block numbers come in, the next tile's go out: K and V never wait for the table.
    """
    i_n = start + tl.arange(0, BLOCK_N)
    i_d = tl.arange(0, DIM_PAD)
    m_n = i_n < hi
    i_b = b_block.to(tl.int64)
    b_block = _blocks(p_table, start + BLOCK_N, hi, BLOCK_SIZE, BLOCK_N)
    i_o = i_n % BLOCK_SIZE
    p_bk = p_k + (i_b * s_kb + i_o * s_kn)[:, None] + i_d[None, :] * s_kd
    p_bv = p_v + (i_b * s_vb + i_o * s_vn)[:, None] + i_d[None, :] * s_vd
    if USE_MASK:
        m_kv = m_n[:, None] & (i_d < DIM)[None, :]
        b_k = tl.load(p_bk, mask=m_kv, other=0.0)
        b_v = tl.load(p_bv, mask=m_kv, other=0.0)
    elif DIM < DIM_PAD:
        m_d = (i_d < DIM)[None, :]
        b_k = tl.load(p_bk, mask=m_d, other=0.0)
        b_v = tl.load(p_bv, mask=m_d, other=0.0)
    else:
        b_k = tl.load(p_bk)
        b_v = tl.load(p_bv)
    i_w = i_n // 32
    b_w = tl.load(p_words + i_w, mask=i_w < num_words, other=0)
    is_image = ((b_w >> (i_n % 32)) & 1) != 0

    b_k = _widen(b_k, b_q.dtype, E4M3_BITS)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
    b_s = tl.where(is_image[None, :], _steer(b_s, amount[:, None], rule), b_s)
    if USE_SOFT_CAP:
        b_t = tl.exp2(b_s * (2 * LOG2_E / soft_cap))
        b_s = soft_cap * (1.0 - 2.0 / (b_t + 1.0))
    b_s = b_s * LOG2_E
    if USE_MASK:
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))

    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    # Before the first finite logit the maximum is -inf, and -inf - -inf is NaN.
    b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.exp2(b_s - b_ref[:, None])
    b_old = tl.exp2(b_max - b_ref)
    b_sum = b_sum * b_old + tl.sum(b_p, 1)
    b_v = _widen(b_v, b_q.dtype, E4M3_BITS)
    b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_q.dtype), b_v, input_precision="ieee")
    return b_block, b_acc, b_new, b_sum


@triton.jit
def _float8(x, FLOAT8: tl.constexpr):
    """float32 -> its float8 code as vLLM writes it (nearest, ties to even, saturated), and the
    float32 that the code stands for."""
    MAN: tl.constexpr = 2 if FLOAT8 == "e5m2" or FLOAT8 == "e5m2fnuz" else 3
    FNUZ: tl.constexpr = FLOAT8 == "e4m3fnuz" or FLOAT8 == "e5m2fnuz"
    BIAS: tl.constexpr = (15 if MAN == 2 else 7) + (1 if FNUZ else 0)
    TOP: tl.constexpr = 57344.0 if MAN == 2 else 240.0 if FNUZ else 448.0
    SHIFT: tl.constexpr = 23 - MAN
    OFFSET: tl.constexpr = (127 - BIAS) << MAN
    # Added to a number below the least normal one, it rounds that to a multiple of STEP.
    STEP: tl.constexpr = 2.0 ** (1 - BIAS - MAN)
    MAGIC: tl.constexpr = 2.0 ** (24 - BIAS - MAN)
    MAGIC_BITS: tl.constexpr = (127 + 24 - BIAS - MAN) << 23
    size = tl.minimum(tl.abs(x), TOP)
    bits = size.to(tl.int32, bitcast=True)
    normal = (bits + ((1 << (SHIFT - 1)) - 1) + ((bits >> SHIFT) & 1)) >> SHIFT
    small = (size + MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS
    is_small = size < 2.0 ** (1 - BIAS)
    code = tl.where(is_small, small, normal - OFFSET)
    value = tl.where(
        is_small, small.to(tl.float32) * STEP, (normal << SHIFT).to(tl.float32, bitcast=True)
    )
    negative = x < 0
    if FNUZ:  # the code of -0 is NaN there
        negative = negative & (code > 0)
    return tl.where(negative, code | 0x80, code), tl.where(negative, -value, value)


@triton.jit
def _as_cached(b, p_scale, p_kept, KIND: tl.constexpr, FLOAT8: tl.constexpr):
    """A side row's key or value as the cache would hold it, and as it would be read back."""
    b = b.to(tl.float32)
    if FLOAT8 == "":
        code = b.to(p_kept.dtype.element_ty)
        return code, code.to(tl.float32)
    else:
        if KIND == "tensor":
            b = b / tl.load(p_scale)
        elif KIND == "value":
            b = b / p_scale
        code, value = _float8(b, FLOAT8)
        return code.to(tl.uint8), value


# Index lists are slices of persistent buffers: an odd start must not compile anew.
_LISTS = [
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
    "p_kept",
    "p_where",
]


@triton.jit(do_not_specialize=("first_side", "num_kept"), do_not_specialize_on_alignment=_LISTS)
def steer_kernel(
    p_out,
    p_part,  # [E, ROWS, num_heads, splits, DIM] float32, then log2-sum-exp without DIM
    p_q,
    p_k,
    p_v,
    p_table,
    p_rows,
    p_reqs,
    p_lens,
    p_slots,
    p_alpha,
    p_words,
    p_starts,
    p_num_words,
    p_rules,
    p_heads,
    p_sinks,
    p_own,  # [E] side rows of the entry; 0 for a row in its place
    p_key,  # [num_tokens, num_kv_heads, DIM]
    p_value,
    p_kept,  # [num_kept, 2, num_kv_heads, DIM] of the cache's dtype; float8 as uint8
    p_where,  # [num_kept] int64, the cache slot of their last position
    k_own,  # the cache's own scale of keys
    first_side,  # token index of the first side row
    num_kept,  # side rows, the first ones, that are kept
    scale,
    k_scale,
    v_scale,
    window,
    soft_cap,
    s_ot,
    s_oh,
    s_qt,
    s_qh,
    s_kb,
    s_kn,
    s_kh,
    s_kd,
    s_vb,
    s_vn,
    s_vh,
    s_vd,
    s_table,
    s_key,
    s_value,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    USE_SPLITS: tl.constexpr,
    USE_WINDOW: tl.constexpr,
    USE_SOFT_CAP: tl.constexpr,
    USE_SINKS: tl.constexpr,
    K_SCALE: tl.constexpr,
    V_SCALE: tl.constexpr,
    E4M3_BITS: tl.constexpr,
    ROWS: tl.constexpr,  # 1: rows in their places only; 2: side rows too
    FLOAT8: tl.constexpr,
):
    """One program per (kv head, split, entry). Its lanes are rows x heads of the group."""
    i_h, i_s, i_e = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lo, hi, _ = split_range(p_lens + i_e, i_s, window, tl.num_programs(1), USE_WINDOW, BLOCK_N)
    if lo >= hi:
        return
    i_l = tl.arange(0, LANES)
    i_d = tl.arange(0, DIM_PAD)
    i_j = i_l // GROUP  # row of the entry
    i_qh = i_h * GROUP + i_l % GROUP
    m_l = i_l < GROUP
    last = 0
    has_own = False
    if ROWS > 1:
        own = tl.load(p_own + i_e)
        m_l = i_l < GROUP * tl.maximum(own, 1)
        last = tl.load(p_lens + i_e) - 1
        has_own = (own > 0) & (last < hi)
        hi = tl.where(has_own, last, hi)
    m_ld = m_l[:, None] & (i_d < DIM)[None, :]
    i_t = tl.load(p_rows + i_e).to(tl.int64) + i_j
    b_q = tl.load(p_q + (i_t * s_qt + i_qh * s_qh)[:, None] + i_d[None, :], mask=m_ld, other=0.0)
    alpha = tl.load(p_alpha + tl.load(p_slots + i_e) + i_j, mask=m_l, other=1.0)
    p_heads += i_e.to(tl.int64) * ((tl.num_programs(0) * GROUP + 31) // 32)
    b_heads = tl.load(p_heads + i_qh // 32, mask=m_l, other=0)
    is_on = ((b_heads >> (i_qh % 32)) & 1) != 0
    rule = tl.load(p_rules + i_e)
    amount = _amount(alpha, rule, is_on)
    num_words = tl.load(p_num_words + i_e)
    p_words += tl.load(p_starts + i_e)
    p_table += tl.load(p_reqs + i_e).to(tl.int64) * s_table
    p_k += i_h.to(tl.int64) * s_kh
    p_v += i_h.to(tl.int64) * s_vh
    if K_SCALE == "tensor":
        scale *= tl.load(k_scale)
    elif K_SCALE == "value":
        scale *= k_scale

    b_max = tl.full([LANES], float("-inf"), tl.float32)
    b_sum = tl.full([LANES], 0.0, tl.float32)
    if USE_SINKS:  # noqa: SIM102  (resolved by the compiler; the inner test is not)
        if i_s == 0:
            b_sink = tl.load(p_sinks + i_qh, mask=m_l, other=0.0)
            b_max = b_sink.to(tl.float32) * LOG2_E
            b_sum = tl.full([LANES], 1.0, tl.float32)
    b_acc = tl.full([LANES, DIM_PAD], 0.0, tl.float32)

    b_block = _blocks(p_table, lo, hi, BLOCK_SIZE, BLOCK_N)
    whole = lo + (hi - lo) // BLOCK_N * BLOCK_N
    for start in tl.range(lo, whole, BLOCK_N):
        b_block, b_acc, b_max, b_sum = _tile(
            b_block, b_acc, b_max, b_sum, b_q, start, hi, amount, rule, scale, soft_cap,
            p_k, p_v, p_table, p_words, num_words, s_kb, s_kn, s_kd, s_vb, s_vn, s_vd,
            DIM, DIM_PAD, BLOCK_SIZE, BLOCK_N, USE_SOFT_CAP, E4M3_BITS, USE_MASK=False,
        )  # fmt: skip
    if whole < hi:
        b_block, b_acc, b_max, b_sum = _tile(
            b_block, b_acc, b_max, b_sum, b_q, whole, hi, amount, rule, scale, soft_cap,
            p_k, p_v, p_table, p_words, num_words, s_kb, s_kn, s_kd, s_vb, s_vn, s_vd,
            DIM, DIM_PAD, BLOCK_SIZE, BLOCK_N, USE_SOFT_CAP, E4M3_BITS, USE_MASK=True,
        )  # fmt: skip
    if ROWS > 1:  # noqa: SIM102
        if has_own:
            side = i_t - first_side  # all lanes of a row write the same
            m_keep = m_l & (side < num_kept)
            p_keep = p_kept + (2 * side * tl.num_programs(0) + i_h)[:, None] * DIM + i_d[None, :]
            b_k = tl.load(
                p_key + (i_t * s_key + i_h * DIM)[:, None] + i_d[None, :], mask=m_ld, other=0.0
            )
            code, b_k = _as_cached(b_k, k_own, p_kept, K_SCALE, FLOAT8)
            tl.store(p_keep, code, mask=m_ld & m_keep[:, None])
            if i_h == 0:
                slot = tl.load(p_table + last // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE
                slot += last % BLOCK_SIZE
                tl.store(p_where + side, tl.zeros_like(side) + slot, mask=m_keep)
            b_s = tl.sum(b_q.to(tl.float32) * b_k, 1) * scale
            word = tl.load(p_words + last // 32, mask=last // 32 < num_words, other=0)
            is_image = ((word >> (last % 32)) & 1) != 0
            b_s = tl.where(is_image, _steer(b_s, amount, rule), b_s)
            if USE_SOFT_CAP:
                b_s = soft_cap * (1.0 - 2.0 / (tl.exp2(b_s * (2 * LOG2_E / soft_cap)) + 1.0))
            b_s = b_s * LOG2_E
            b_new = tl.maximum(b_max, b_s)
            b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
            b_old = tl.exp2(b_max - b_ref)
            b_p = tl.exp2(b_s - b_ref)
            b_sum = b_sum * b_old + b_p
            b_v = tl.load(
                p_value + (i_t * s_value + i_h * DIM)[:, None] + i_d[None, :], mask=m_ld, other=0.0
            )
            code, b_v = _as_cached(b_v, v_scale, p_kept, V_SCALE, FLOAT8)
            p_keep += tl.num_programs(0) * DIM
            tl.store(p_keep, code, mask=m_ld & m_keep[:, None])
            b_acc = b_acc * b_old[:, None] + b_p[:, None] * b_v
            b_max = b_new

    b_o = b_acc / b_sum[:, None]
    if V_SCALE == "tensor":
        b_o *= tl.load(v_scale)
    elif V_SCALE == "value":
        b_o *= v_scale
    if USE_SPLITS:
        num_heads, splits = tl.num_programs(0) * GROUP, tl.num_programs(1)
        i_part = ((i_e.to(tl.int64) * ROWS + i_j) * num_heads + i_qh) * splits + i_s
        p_lse = p_part + tl.num_programs(2).to(tl.int64) * ROWS * num_heads * splits * DIM
        # A split whose logits are all -inf counts for nothing: not 0/0, but weight 0.
        b_o = tl.where((b_sum > 0)[:, None], b_o, 0.0)
        tl.store(p_part + i_part[:, None] * DIM + i_d[None, :], b_o, mask=m_ld)
        tl.store(p_lse + i_part, b_max + tl.log2(b_sum), mask=m_l)
    else:
        p_o = p_out + (i_t * s_ot + i_qh * s_oh)[:, None] + i_d[None, :]
        tl.store(p_o, b_o.to(p_out.dtype.element_ty), mask=m_ld)
