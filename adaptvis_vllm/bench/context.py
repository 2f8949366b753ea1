"""What steering one row costs as its context grows: counted bytes, and time in one layer.

Against it stands the time in which torch sums the same K and V once, in their own dtype: the
least that reading them costs. Measured on the CPU; on a GPU see `benchmarks/kernel.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from adaptvis_vllm.engine.attention import cpu
from adaptvis_vllm.engine.plan import StepRows
from adaptvis_vllm.steering.span import pack_bits

BLOCK = 128
IMAGE_TOKENS = 576
# Between repetitions other layers' K and V pass through the caches; so do they here.
COLD_BYTES = 64 << 20


def measure(
    contexts: Sequence[int],
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    repeats: int,
) -> list[dict[str, Any]]:
    """One line of figures per context: bytes, microseconds of steering and of reading.

    The row's K and V lie in blocks of 128 in random order. steer_us: what one layer costs.
    """
    return [_measured(c, heads, kv_heads, dim, dtype, repeats) for c in contexts]


def _measured(
    context: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    layers = _layers(context, kv_heads, dim, dtype)
    impl = SimpleNamespace(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=dim,
        scale=dim**-0.5,
        sliding_window=-1,
        logits_soft_cap=0.0,
        sinks=None,
    )
    layer = SimpleNamespace(isa=_get_attn_isa(dtype, BLOCK, dim, "auto"), impl=impl)
    query = torch.randn(1, heads, dim).to(dtype)
    output = torch.empty_like(query)
    blocks = layers[0].shape[0] - 1
    metadata = SimpleNamespace(block_table=(1 + torch.randperm(blocks))[None].int())
    rows = _rows(context, heads)
    steered = cpu.CpuLayer(layer, 0, None)
    times: dict[str, list[float]] = {"steer_us": [], "read_us": []}

    def recompute(cache: torch.Tensor) -> None:
        # A row in its place: its key and value are in the cache.
        steered.recompute(query, query, query, cache, metadata, output, rows)

    with torch.inference_mode():
        for _ in range(repeats + 1):
            times["steer_us"].append(_seconds(layers, recompute))
            times["read_us"].append(_seconds(layers, lambda cache: cache[1:].sum()))
    used = 2 * context * kv_heads * dim * layers[0].element_size()
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "context": context,
        "bytes": used,
        **{name: median(values[1:]) * 1e6 for name, values in times.items()},
    }


def _seconds(layers: list[torch.Tensor], work: Callable[[torch.Tensor], object]) -> float:
    """Of one layer: the mean over all."""
    began = time.perf_counter()
    for cache in layers:
        work(cache)
    return (time.perf_counter() - began) / len(layers)


def _layers(context: int, kv_heads: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Caches of enough layers that none stays in the processor's own caches."""
    blocks = 1 + -(-context // BLOCK)
    cache = torch.randn(blocks, kv_heads, BLOCK, 2 * dim).to(dtype)
    size = cache.numel() * cache.element_size()
    return [cache] + [cache.clone() for _ in range(-(-COLD_BYTES // size) - 1)]


def _rows(context: int, heads: int) -> StepRows:
    words = pack_bits(np.arange(min(8, context - 1), min(8 + IMAGE_TOKENS, context)))

    def ints(value: int) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.int32)

    return StepRows(
        rows=ints(0),
        reqs=ints(0),
        kv_lens=ints(context),
        slots=ints(0),
        alpha=torch.tensor([1.5]),
        span_words=torch.from_numpy(words),
        span_starts=ints(0),
        span_lens=ints(len(words)),
        rules=ints(0),
        heads=torch.full((1, -(-heads // 32)), -1, dtype=torch.int32),
        own=ints(0),
        max_kv_len=context,
    )
