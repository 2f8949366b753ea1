"""Host time of a steered layer, in eager mode: all that Python does before a launch.

    python benchmarks/host.py

Runs without a GPU: the launch itself is left out. Bfloat16, 32 heads of 128, 8 requests.
"""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace

import torch
from adaptvis_vllm.kernels.gpu import launch

from adaptvis_vllm.engine.attention.paged import PagedLayer, caches
from adaptvis_vllm.engine.plan import StepRows

REQUESTS, HEADS, DIM, BLOCK, CONTEXT = 8, 32, 128, 16, 600
CALLS, ROUNDS = 100, 50


class NoLaunch(dict):
    """Takes the place of compiled kernels: kernel[grid](...) does nothing."""

    def get(self, name: str, default: object = None) -> object:
        return self

    def __getitem__(self, grid: object) -> object:
        return lambda *args: None


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def rows(sides: int) -> StepRows:
    """sides: side rows of each request; 0: its row in place."""
    each = ints(*range(REQUESTS))
    return StepRows(
        rows=each,
        reqs=each,
        kv_lens=ints(*[CONTEXT] * REQUESTS),
        slots=each,
        alpha=torch.ones(2 * REQUESTS),
        span_words=each,
        span_starts=each,
        span_lens=ints(*[1] * REQUESTS),
        rules=ints(*[0] * REQUESTS),
        heads=ints(*[-1] * REQUESTS)[:, None],
        own=ints(*[sides] * REQUESTS),
        max_kv_len=CONTEXT,
        sides=slice(REQUESTS, REQUESTS + REQUESTS * sides),
    )


def microseconds(sides: int) -> float:
    """Of one layer, the median of several rounds."""
    query = torch.zeros(4 * REQUESTS, HEADS, DIM, dtype=torch.bfloat16)
    kv_cache = torch.zeros(64, HEADS, BLOCK, 2 * DIM, dtype=torch.bfloat16)
    impl = SimpleNamespace(
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_size=DIM,
        scale=DIM**-0.5,
        logits_soft_cap=None,
        sinks=None,
    )
    layer = SimpleNamespace(
        impl=impl, kv_cache_dtype="auto", sliding_window=None, kv_cache=kv_cache
    )
    plan = SimpleNamespace(kept=None, commits=[], num_kept=REQUESTS * sides)
    steering = SimpleNamespace(plan=plan, caches=caches([layer]), cache_lines={0: 0})
    steered, step = PagedLayer(layer, 0, steering), rows(sides)
    metadata = SimpleNamespace(block_table=torch.zeros(REQUESTS, 64, dtype=torch.int32))
    output, times = torch.empty_like(query), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            steered.recompute(query, query, query, kv_cache, metadata, output, step)
        times.append((time.perf_counter() - start) / CALLS)
    return 1e6 * statistics.median(times)


@torch.inference_mode()
def main() -> None:
    make = launch._make_plan

    def planned(*args: object, **options: object) -> launch.Plan:
        plan = make(*args, **options)  # type: ignore[arg-type]
        plan.compiled = NoLaunch()
        return plan

    launch._make_plan = planned
    print(f"rows in place: {microseconds(0):.1f} us a layer, launch left out")
    print(f"side rows:     {microseconds(2):.1f} us a layer, launch left out")


if __name__ == "__main__":
    main()
