"""The second launch of a split row: joins the partial results of its splits."""

import triton
import triton.language as tl

from .steer import split_range


@triton.jit(
    do_not_specialize=("splits",),
    do_not_specialize_on_alignment=("p_rows", "p_lens", "p_own", "p_part"),
)
def reduce_kernel(
    p_out,
    p_part,
    p_rows,
    p_lens,
    p_own,
    splits,
    window,
    s_ot,
    s_oh,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    USE_WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Join the splits of one (head, entry, row of the entry)."""
    i_h, i_e, i_j = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, _, used = split_range(p_lens + i_e, 0, window, splits, USE_WINDOW, BLOCK_N)
    if used <= 0:
        return
    if ROWS > 1:  # noqa: SIM102  (resolved by the compiler; the inner test is not)
        if i_j >= tl.maximum(tl.load(p_own + i_e), 1):
            return
    i_d = tl.arange(0, DIM_PAD)
    m_d = i_d < DIM
    i_part = ((i_e.to(tl.int64) * ROWS + i_j) * tl.num_programs(0) + i_h) * splits
    p_lse = p_part + i_part
    p_lse += tl.num_programs(1).to(tl.int64) * ROWS * tl.num_programs(0) * splits * DIM
    b_acc = tl.full([DIM_PAD], 0.0, tl.float32)
    b_max = tl.full([1], float("-inf"), tl.float32)
    b_sum = tl.full([1], 0.0, tl.float32)
    for start in range(0, used, CHUNK):
        i_s = start + tl.arange(0, CHUNK)
        m_s = i_s < used
        b_lse = tl.load(p_lse + i_s, mask=m_s, other=float("-inf"))
        p_o = p_part + (i_part + i_s)[:, None] * DIM + i_d[None, :]
        b_o = tl.load(p_o, mask=m_s[:, None] & m_d[None, :], other=0.0)
        b_new = tl.maximum(b_max, tl.max(b_lse, 0))
        b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_w = tl.exp2(b_lse - b_ref)
        b_old = tl.exp2(b_max - b_ref)
        b_acc = b_acc * b_old + tl.sum(b_w[:, None] * b_o, 0)
        b_sum = b_sum * b_old + tl.sum(b_w, 0)
        b_max = b_new
    i_t = tl.load(p_rows + i_e).to(tl.int64) + i_j
    b_o = (b_acc / b_sum).to(p_out.dtype.element_ty)
    tl.store(p_out + i_t * s_ot + i_h * s_oh + i_d, b_o, mask=m_d)
