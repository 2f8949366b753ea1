"""The public entry: one launch for short rows or many of them, two where rows are split.

A layer's shapes, strides and options repeat from call to call. What follows from them is worked
out once and kept as a Plan, compiled kernels included: Triton's own launcher would look at some
fifty arguments again each time, which takes the host longer than all the rest.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch

from .config import PAIR, RULES, Tile, choose_splits, choose_tile, reduce_constants, steer_constants
from .reduce import reduce_kernel
from .steer import steer_kernel

# Float8 caches by the kernel's name for what is written into them.
FLOAT8 = {
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e4m3fnuz: "e4m3fnuz",
    torch.float8_e5m2: "e5m2",
    torch.float8_e5m2fnuz: "e5m2fnuz",
}


@dataclass
class Sides:
    """Side rows of a call, which bring key and value of their last position themselves.

    own: [E] int32, side rows of the entry, at most 2; 0 for a row in its place.
    first: token index of the first side row. key, value: [num_tokens, num_kv_heads, head_dim].
    kept: [side rows * 2 * num_kv_heads * head_dim], where they are kept in the cache's dtype,
    float8 as uint8. where: [side rows] int64, takes the cache slot of their last position.
    k_scale: the cache's scale of keys, for float8.
    """

    own: torch.Tensor
    first: int
    key: torch.Tensor
    value: torch.Tensor
    kept: torch.Tensor
    where: torch.Tensor
    k_scale: float | torch.Tensor | None = None

    def signature(self) -> tuple[Any, ...]:
        """What a launch depends on."""
        tensors = (self.own, self.key, self.value, self.kept, self.where)
        pointers = (self.key.data_ptr() % 16, self.value.data_ptr() % 16)
        return (*[(t.dtype, t.stride()) for t in tensors], pointers)


@dataclass
class Plan:
    """How to launch one kind of call."""

    tile: Tile
    constants: dict[bool, dict[str, Any]]  # by whether rows are split
    reduce: dict[str, Any]
    num_sms: int
    e4m3_bits: bool
    rows: int  # of an entry at most
    compiled: dict[str, Any] = field(default_factory=dict)

    def launch(
        self, name: str, kernel: Any, grid: tuple[int, ...], *args: Any, **const: Any
    ) -> None:
        known = self.compiled.get(name)
        if known is not None:
            known[grid](*args, *const.values())
            return
        warps, stages = self.tile.num_warps, self.tile.num_stages
        compiled = kernel[grid](*args, **const, num_warps=warps, num_stages=stages)
        if compiled is not None:  # None from Triton's interpreter
            self.compiled[name] = compiled


_plans: dict[tuple[Any, ...], Plan] = {}


def steered_attention(
    out: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    key_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
    value_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
    block_table: torch.Tensor,  # [num_reqs, max_blocks] int32
    rows: torch.Tensor,  # [E] int32: token index of an entry's first steered row
    reqs: torch.Tensor,  # [E] int32: its line in block_table
    kv_lens: torch.Tensor,  # [E] int32: keys it sees; 0 leaves the row of `out` alone
    slots: torch.Tensor,  # [E] int32: its index in alpha
    alpha: torch.Tensor,  # [num_slots] float32
    span_words: torch.Tensor,  # [W] int32: bit p % 32 of word span_starts[r] + p // 32
    span_starts: torch.Tensor,  # [E] int32: first word of the row's bitmap
    span_lens: torch.Tensor,  # [E] int32: its words; later positions are no image positions
    *,
    scale: float,
    max_kv_len: int,  # upper bound of kv_lens, known to the host
    window: int = 0,  # > 0: a row at position n sees n - window < p <= n
    soft_cap: float = 0.0,  # > 0: cap * tanh(s / cap), after the rule
    sinks: torch.Tensor | None = None,  # [num_heads] extra logit per head, never steered
    k_scale: float | torch.Tensor | None = None,
    v_scale: float | torch.Tensor | None = None,
    sides: Sides | None = None,
    rule: str = "multiply",
    tile: Tile | None = None,  # for tests and tuning
    splits: int | None = None,  # likewise
) -> None:
    """Overwrite the steered rows of `out`; strides are free, no host synchronisation."""
    num_rows = rows.shape[0]
    if num_rows == 0:
        return
    _, num_heads, dim = query.shape
    num_kv_heads = key_cache.shape[2]
    s_ot, s_oh, s_od = out.stride()
    s_qt, s_qh, s_qd = query.stride()
    k_strides, v_strides = key_cache.stride(), value_cache.stride()
    s_table = block_table.stride(0)
    own = key = value = kept = where = k_own = None
    s_key = s_value = first_side = 0
    if sides is not None:
        own, key, value, kept, where = sides.own, sides.key, sides.value, sides.kept, sides.where
        k_own, first_side = sides.k_scale, sides.first
        s_key, s_value = key.stride(0), value.stride(0)
    lists = (rows, reqs, kv_lens, slots, span_starts, span_lens, span_words)
    options = [t for t in (sinks, k_scale, v_scale, k_own) if isinstance(t, torch.Tensor)]
    # Triton compiles for aligned and unaligned pointers apart.
    pointers = [t.data_ptr() % 16 for t in (out, query, key_cache, value_cache, *options)]
    signature = (
        (query.device, out.dtype, query.dtype, key_cache.dtype, value_cache.dtype, alpha.dtype),
        (query.shape[1:], key_cache.shape[1:], value_cache.shape[1:], tile, rule, window),
        (s_ot, s_oh, s_od, s_qt, s_qh, s_qd, k_strides, v_strides, s_table, block_table.stride(1)),
        (soft_cap > 0, _kind(sinks), _kind(k_scale), _kind(v_scale), tuple(pointers)),
        tuple([(t.dtype, t.is_contiguous()) for t in (*lists, *options)]),
        block_table.dtype,
        sides and sides.signature(),
    )  # fmt: skip
    plan = _plans.get(signature)
    is_new = plan is None
    if plan is None:
        _check(out, query, key_cache, value_cache, block_table, lists, alpha, sinks, rule)
        if sides is not None:
            _check_sides(sides, key_cache)
        plan = _plans[signature] = _make_plan(
            *(query, key_cache, tile, window, soft_cap, sinks, k_scale, v_scale, rule),
            rows=1 if sides is None else PAIR,
        )
    if splits is None:
        splits = choose_splits(
            plan.tile,
            rows=num_rows,
            num_kv_heads=num_kv_heads,
            max_keys=min(max_kv_len, window) if window > 0 else max_kv_len,
            num_sms=plan.num_sms,
        )
    if plan.e4m3_bits:
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)

    def launch(splits: int) -> None:
        part = None
        if splits > 1:
            size = num_rows * plan.rows * num_heads * splits * (dim + 1)
            part = torch.empty(size, dtype=torch.float32, device=out.device)
        plan.launch(
            "split" if splits > 1 else "whole",
            steer_kernel,
            (num_kv_heads, splits, num_rows),
            *(out, part, query, key_cache, value_cache, block_table),
            *(rows, reqs, kv_lens, slots, alpha, span_words, span_starts, span_lens, sinks),
            *(own, key, value, kept, where, k_own, first_side),
            *(scale, k_scale, v_scale, window, soft_cap),
            *(s_ot, s_oh, s_qt, s_qh, *k_strides, *v_strides, s_table, s_key, s_value),
            **plan.constants[splits > 1],
        )
        if splits > 1:
            plan.launch(
                "reduce",
                reduce_kernel,
                (num_heads, num_rows, plan.rows),
                *(out, part, rows, kv_lens, own, splits, window, s_ot, s_oh),
                **plan.reduce,
            )

    if is_new and _compiles(out.device):
        # Few rows and many take programs of their own. Both are compiled at the first call, which
        # is an engine's check at its start, and not when traffic first grows; either is right.
        launch(1 if splits > 1 else 2)
    launch(splits)


def _compiles(device: torch.device) -> bool:
    return device.type == "cuda"  # no interpreter


def _make_plan(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    tile: Tile | None,
    window: int,
    soft_cap: float,
    sinks: torch.Tensor | None,
    k_scale: float | torch.Tensor | None,
    v_scale: float | torch.Tensor | None,
    rule: str,
    *,
    rows: int,
) -> Plan:
    _, num_heads, dim = query.shape
    _, block_size, num_kv_heads, _ = key_cache.shape
    is_hip = torch.version.hip is not None
    if tile is None:
        tile = choose_tile(head_dim=dim, kv_bytes=key_cache.element_size(), is_hip=is_hip)
    e4m3_bits = key_cache.dtype is torch.float8_e4m3fn and not _converts_e4m3(query.device)
    constants = {
        is_split: steer_constants(
            tile,
            is_split=is_split,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=dim,
            block_size=block_size,
            rule=rule,
            window=window,
            soft_cap=soft_cap,
            use_sinks=sinks is not None,
            k_scale=_kind(k_scale),
            v_scale=_kind(v_scale),
            e4m3_bits=e4m3_bits,
            rows=rows,
            float8=FLOAT8.get(key_cache.dtype, "") if rows > 1 else "",
        )
        for is_split in (False, True)
    }
    reduce = reduce_constants(tile, head_dim=dim, window=window, rows=rows)
    return Plan(tile, constants, reduce, _num_sms(query.device), e4m3_bits, rows)


def _kind(option: float | torch.Tensor | None) -> str:
    if option is None:
        return "none"
    return "tensor" if isinstance(option, torch.Tensor) else "value"


def _check(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    lists: tuple[torch.Tensor, ...],
    alpha: torch.Tensor,
    sinks: torch.Tensor | None,
    rule: str,
) -> None:
    """What would otherwise read the wrong memory in silence."""
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}, expected one of {', '.join(RULES)}")
    if query.shape[1] % key_cache.shape[2]:
        raise ValueError(f"{query.shape[1]} heads do not divide into {key_cache.shape[2]} KV heads")
    if out.stride(2) != 1 or query.stride(2) != 1:
        raise ValueError("the head dimension of out and query must be contiguous")
    if key_cache.shape != value_cache.shape or key_cache.dtype != value_cache.dtype:
        raise ValueError("key_cache and value_cache must have one shape and dtype")
    if not key_cache.dtype.is_floating_point:
        raise ValueError(f"the cache holds {key_cache.dtype}: view fp8 caches as a float8 dtype")
    if alpha.dtype != torch.float32:
        raise ValueError(f"alpha must be float32, not {alpha.dtype}")
    for t in lists:
        if t.dtype != torch.int32 or not t.is_contiguous():
            raise ValueError("index tensors and span_words must be contiguous int32")
    if block_table.dtype != torch.int32 or block_table.stride(1) != 1:
        raise ValueError("block_table must be int32 with contiguous lines")
    if sinks is not None and (sinks.shape != query.shape[1:2] or not sinks.is_contiguous()):
        raise ValueError("sinks must be one contiguous logit per head")


def _check_sides(sides: Sides, key_cache: torch.Tensor) -> None:
    dim = key_cache.shape[3]
    if sides.key.stride()[1:] != (dim, 1) or sides.value.stride()[1:] != (dim, 1):
        raise ValueError("the heads of a side row's key and value must be contiguous")
    kept = torch.uint8 if key_cache.element_size() == 1 else key_cache.dtype
    if sides.kept.dtype != kept:
        raise ValueError(f"side rows are kept as {kept} for this cache, not {sides.kept.dtype}")
    if sides.own.dtype != torch.int32 or not sides.own.is_contiguous():
        raise ValueError("own must be contiguous int32")
    if sides.where.dtype != torch.int64 or not sides.where.is_contiguous():
        raise ValueError("where must be contiguous int64")


@functools.cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # Triton's interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _converts_e4m3(device: torch.device) -> bool:
    """Compute capability 8.9 and later convert e4m3 in hardware; Triton refuses it before."""
    if device.type != "cuda" or torch.version.hip:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 9)
