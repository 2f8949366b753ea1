"""`weights.cpp` from Python."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from .build import TYPES, check_lists, check_sizes, loaded

_POINTERS = (
    *("query", "output", "cache", "block_table", "rows", "reqs", "kv_lens", "slots", "alpha"),
    *("span_words", "span_starts", "span_lens", "rules", "heads", "own", "key", "positions"),
    *("pos_starts", "pos_lens", "offsets", "sinks"),
)
_STRIDES = ("query_stride", "table_stride")
_INTS = (
    *("num_rows", "num_heads", "kv_heads", "dim", "block", "window", "packed", "threads"),
    *("value_type", "cache_type"),
)


class Weights(ctypes.Structure):
    """The argument of `adaptvis_weigh_rows`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int32) for name in _INTS),
        ("scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
    )


def weigh_rows(
    output: torch.Tensor,  # [N] float16
    query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    kv_cache: torch.Tensor,  # [num_blocks, num_kv_heads, block_size, 2 * head_dim]
    block_table: torch.Tensor,  # [num_reqs, max_blocks] int32
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
    key: torch.Tensor,  # [E, num_kv_heads, head_dim] of the cache's dtype: those of the rows
    scale: float,
    packed: bool,  # the cache's pages are those of vLLM's `amx` layout
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,  # [num_heads] float32
) -> None:
    """Write the attention weights of each entry's positions; RuntimeError where
    `build.problem()` is one, ValueError for tensors that are not as said here."""
    tensors: dict[str, torch.Tensor] = {
        "block_table": block_table,
        "rows": rows,
        "reqs": reqs,
        "kv_lens": kv_lens,
        "slots": slots,
        "alpha": alpha,
        "span_words": span_words,
        "span_starts": span_starts,
        "span_lens": span_lens,
        "rules": rules,
        "heads": heads,
        "own": own,
        "positions": positions,
        "pos_starts": pos_starts,
        "pos_lens": pos_lens,
        "offsets": offsets,
    }
    if sinks is not None:
        tensors["sinks"] = sinks
    _check(output, query, kv_cache, key, len(rows), tensors)
    num_heads, dim = query.shape[1:]
    _, kv_heads, block, _ = kv_cache.shape
    _library()(
        Weights(
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            query=query.data_ptr(),
            output=output.data_ptr(),
            cache=kv_cache.data_ptr(),
            key=key.data_ptr(),
            query_stride=query.stride(0),
            table_stride=block_table.stride(0),
            num_rows=len(rows),
            num_heads=num_heads,
            kv_heads=kv_heads,
            dim=dim,
            block=block,
            window=window,
            packed=packed,
            threads=torch.get_num_threads(),
            value_type=TYPES[query.dtype],
            cache_type=TYPES[kv_cache.dtype],
            scale=scale,
            soft_cap=soft_cap,
        )
    )


def _check(
    output: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    key: torch.Tensor,
    entries: int,
    tensors: dict[str, torch.Tensor],
) -> None:
    """No assert: `python -O` would leave memory unguarded."""
    heads, dim = query.shape[1:]
    _, kv_heads, block, twice = kv_cache.shape
    check_sizes(dim, block)
    if twice != 2 * dim or heads % kv_heads or not kv_cache.is_contiguous():
        shapes = f"{[*query.shape]} and {[*kv_cache.shape]}"
        raise ValueError(f"query and contiguous kv_cache do not fit together: {shapes}")
    if query.stride()[1:] != (dim, 1):
        raise ValueError(f"the heads of query must be contiguous, not of {query.stride()}")
    if key.shape != (entries, kv_heads, dim) or key.dtype != kv_cache.dtype:
        raise ValueError(f"key must be {[entries, kv_heads, dim]} {kv_cache.dtype}")
    if not key.is_contiguous() or output.dtype != torch.float16 or not output.is_contiguous():
        raise ValueError("key must be contiguous, and output contiguous float16")
    check_lists(heads, tensors)


@functools.cache
def _library() -> Any:
    function = loaded().adaptvis_weigh_rows
    function.argtypes, function.restype = [ctypes.POINTER(Weights)], None
    return function
