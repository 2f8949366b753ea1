"""The public entry: one launch for short rows or many of them, two where rows are split.

A layer's shapes, strides and options repeat from call to call. What follows from them is worked
out once and kept as a Plan, compiled kernels included: Triton's own launcher would look at some
fifty arguments again each time, which takes the host longer than all the rest. A `Layer` finds its
plan by the little that its calls may differ in.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch

from .checks import check, kind
from .config import PAIR, Tile, choose_splits, choose_tile, reduce_constants, steer_constants
from .reduce import reduce_kernel
from .sides import FLOAT8, Sides, check_sides
from .steer import steer_kernel


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


class Layer:
    """Steered attention of one layer: what its calls have in common is looked at once.

    key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim], any strides.
    window: > 0: a row at position n sees n - window < p <= n. soft_cap: > 0: cap * tanh(s / cap),
    after the rule. sinks: [num_heads], an extra logit per head, never steered. tile: for tests and
    tuning.
    """

    def __init__(
        self,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        *,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: torch.Tensor | None = None,
        tile: Tile | None = None,
    ) -> None:
        self.key_cache, self.value_cache = key_cache, value_cache
        self.scale, self.window, self.soft_cap = scale, window, soft_cap
        self.sinks, self.tile = sinks, tile
        self.strides = (*key_cache.stride(), *value_cache.stride())
        self.num_kv_heads = key_cache.shape[2]
        self.plans: dict[tuple[Any, ...], Plan] = {}  # by what calls may differ in

    def __call__(
        self,
        out: torch.Tensor,  # [num_tokens, num_heads, head_dim]
        query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
        block_table: torch.Tensor,  # [num_reqs, max_blocks] int32
        rows: torch.Tensor,  # [E] int32: token index of an entry's first steered row
        reqs: torch.Tensor,  # [E] int32: its line in block_table
        kv_lens: torch.Tensor,  # [E] int32: keys it sees; 0 leaves the row of `out` alone
        slots: torch.Tensor,  # [E] int32: its index in alpha
        alpha: torch.Tensor,  # [num_slots] float32
        span_words: torch.Tensor,  # [W] int32: bit p % 32 of word span_starts[r] + p // 32
        span_starts: torch.Tensor,  # [E] int32: first word of the row's bitmap
        span_lens: torch.Tensor,  # [E] int32: its words; later positions are no image positions
        rules: torch.Tensor,  # [E] int32: index in `config.RULES`
        heads: torch.Tensor,  # [E, ceil(num_heads / 32)] int32: bit h % 32 of word h // 32 is set
        # where head h is steered; the row's others are computed with the logits as they are
        *,
        max_kv_len: int,  # upper bound of kv_lens, known to the host
        k_scale: float | torch.Tensor | None = None,
        v_scale: float | torch.Tensor | None = None,
        sides: Sides | None = None,
        splits: int | None = None,  # for tests and tuning
    ) -> None:
        """Overwrite the steered rows of `out`; strides are free, no host synchronisation."""
        num_rows = rows.shape[0]
        if num_rows == 0:
            return
        s_out, s_query, s_table = out.stride(), query.stride(), block_table.stride()
        own = key = value = kept = where = k_own = None
        s_key = s_value = first_side = num_kept = 0
        if sides is not None:
            own, key, value, kept = sides.own, sides.key, sides.value, sides.kept
            where, k_own, first_side = sides.where, sides.k_scale, sides.first
            num_kept = where.shape[0]
            s_key, s_value = key.stride(0), value.stride(0)
        # Triton compiles for aligned and unaligned pointers apart.
        call = (
            (s_out, s_query, s_table, out.dtype, query.dtype),
            (out.data_ptr() % 16, query.data_ptr() % 16),
            (kind(k_scale), kind(v_scale)),
            key is not None
            and value is not None
            and (s_key, s_value, key.data_ptr() % 16, value.data_ptr() % 16, kind(k_own)),
        )
        plan = self.plans.get(call)
        is_new = False
        if plan is None:
            lists = (rows, reqs, kv_lens, slots, span_starts, span_lens, span_words, rules, heads)
            plan, is_new = self._plan(
                out, query, block_table, lists, alpha, (k_scale, v_scale, k_own), sides
            )
            self.plans[call] = plan
        if splits is None:
            splits = choose_splits(
                plan.tile,
                rows=num_rows,
                num_kv_heads=self.num_kv_heads,
                max_keys=min(max_kv_len, self.window) if self.window > 0 else max_kv_len,
                num_sms=plan.num_sms,
            )
        key_cache, value_cache = self.key_cache, self.value_cache
        if plan.e4m3_bits:
            key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
        num_heads, dim = query.shape[1:]

        def launch(splits: int) -> None:
            part = None
            if splits > 1:
                size = num_rows * plan.rows * num_heads * splits * (dim + 1)
                part = torch.empty(size, dtype=torch.float32, device=out.device)
            plan.launch(
                "split" if splits > 1 else "whole",
                steer_kernel,
                (self.num_kv_heads, splits, num_rows),
                *(out, part, query, key_cache, value_cache, block_table),
                *(rows, reqs, kv_lens, slots, alpha, span_words, span_starts, span_lens),
                *(rules, heads),
                *(self.sinks, own, key, value, kept, where, k_own, first_side, num_kept),
                *(self.scale, k_scale, v_scale, self.window, self.soft_cap),
                *(*s_out[:2], *s_query[:2], *self.strides, s_table[0], s_key, s_value),
                **plan.constants[splits > 1],
            )
            if splits > 1:
                plan.launch(
                    "reduce",
                    reduce_kernel,
                    (num_heads, num_rows, plan.rows),
                    *(out, part, rows, kv_lens, own, splits, self.window, *s_out[:2]),
                    **plan.reduce,
                )

        if is_new and _compiles(out.device):
            # Few rows and many take programs of their own. Both are compiled at the first call,
            # which is an engine's check at its start, and not when traffic first grows; either is
            # right.
            launch(1 if splits > 1 else 2)
        launch(splits)

    def _plan(
        self,
        out: torch.Tensor,
        query: torch.Tensor,
        block_table: torch.Tensor,
        lists: tuple[torch.Tensor, ...],
        alpha: torch.Tensor,
        scales: tuple[float | torch.Tensor | None, ...],
        sides: Sides | None,
    ) -> tuple[Plan, bool]:
        """How to launch a call of its kind, which like layers share; whether it is new."""
        key_cache, value_cache, sinks = self.key_cache, self.value_cache, self.sinks
        check(out, query, key_cache, value_cache, block_table, lists, alpha, sinks, lists[-1])
        if sides is not None:
            check_sides(sides, key_cache)
        options = [t for t in (sinks, *scales) if isinstance(t, torch.Tensor)]
        pointers = [t.data_ptr() % 16 for t in (out, query, key_cache, value_cache, *options)]
        signature = (
            (query.device, out.dtype, query.dtype, key_cache.dtype, value_cache.dtype),
            (query.shape[1:], key_cache.shape[1:], self.tile, self.window),
            (out.stride(), query.stride(), self.strides, block_table.stride()),
            (self.soft_cap > 0, tuple([kind(t) for t in (sinks, *scales)]), tuple(pointers)),
            tuple([(t.dtype, t.is_contiguous()) for t in options]),
            sides and sides.signature(),
        )
        plan = _plans.get(signature)
        if plan is not None:
            return plan, False
        plan = _plans[signature] = _make_plan(
            query,
            key_cache,
            self.tile,
            self.window,
            self.soft_cap,
            sinks,
            scales[0],
            scales[1],
            rows=1 if sides is None else PAIR,
        )
        return plan, True


def steered_attention(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    tile: Tile | None = None,
    **call: Any,
) -> None:
    """One call of a `Layer`, whose arguments these are. call: the rest of `Layer.__call__`'s."""
    options: dict[str, Any] = {"scale": scale, "window": window, "soft_cap": soft_cap}
    layer = Layer(key_cache, value_cache, **options, sinks=sinks, tile=tile)
    layer(out, query, block_table, **call)


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
    *,
    rows: int,
) -> Plan:
    _, num_heads, dim = query.shape
    _, block_size, num_kv_heads, _ = key_cache.shape
    is_hip = torch.version.hip is not None
    if tile is None:
        tile = choose_tile(head_dim=dim, kv_bytes=key_cache.element_size(), is_hip=is_hip)
    e4m3_bits = key_cache.dtype is torch.float8_e4m3fn and not converts_e4m3(query.device)
    constants = {
        is_split: steer_constants(
            tile,
            is_split=is_split,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=dim,
            block_size=block_size,
            window=window,
            soft_cap=soft_cap,
            use_sinks=sinks is not None,
            k_scale=kind(k_scale),
            v_scale=kind(v_scale),
            e4m3_bits=e4m3_bits,
            rows=rows,
            float8=FLOAT8.get(key_cache.dtype, "") if rows > 1 else "",
        )
        for is_split in (False, True)
    }
    reduce = reduce_constants(tile, head_dim=dim, window=window, rows=rows)
    return Plan(tile, constants, reduce, _num_sms(query.device), e4m3_bits, rows)


@functools.cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # Triton's interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def converts_e4m3(device: torch.device) -> bool:
    """Compute capability 8.9 and later convert e4m3 in hardware; Triton refuses it before."""
    if device.type != "cuda" or torch.version.hip:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 9)
