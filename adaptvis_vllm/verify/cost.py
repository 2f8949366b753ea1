"""Step `cost`: what steering costs beside vLLM without the plugin, in turns on the same machine.

Counts decide; times are told and decide nothing: a busy machine is no fault of steering.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from adaptvis_vllm.bench.systems import system
from adaptvis_vllm.bench.throughput import Engines, run
from adaptvis_vllm.bench.turns import Turn, percentile, summary
from adaptvis_vllm.bench.workloads import workload
from adaptvis_vllm.verify.checks import Check

STEP = "cost"
SYSTEMS = ("vanilla", "idle", "scaling", "adaptive")
ALONE = ("vanilla", "adaptive")


def measure(
    make: Callable[[str, Any], Any], requests: int, rounds: int, max_tokens: int = 16
) -> list[Check]:
    """make: as of `Engines`; it hands out hosts that run already."""
    chosen = workload("short", max_tokens=max_tokens)
    engines = Engines(make, {})
    turns = run(
        engines,
        [system(name) for name in SYSTEMS],
        chosen,
        requests=requests,
        concurrency=requests,
        rounds=rounds,
    )
    alone = run(
        engines,
        [system(name) for name in ALONE],
        chosen,
        requests=max(4, requests // 4),
        concurrency=1,
        rounds=1,
    )
    checks = [_scheduled(turns)]
    for row in summary(turns)[1:]:
        figure = (
            f"{row['ratio']:.3f} of vanilla's {_rate(turns['vanilla']):.2f} requests/s "
            f"({row['ratio_min']:.3f} to {row['ratio_max']:.3f}), {requests} at once"
        )
        checks.append(Check(STEP, f"{row['system']}: throughput", None, figure))
    checks += [
        Check(STEP, "first token, alone", None, _first(alone)),
        Check(STEP, f"first token, {requests} at once", None, _first(turns)),
    ]
    return checks


def _scheduled(turns: dict[str, list[Turn]]) -> Check:
    """All schedule what vanilla does."""
    base = turns["vanilla"]
    more = {
        name: max((a.scheduled - b.scheduled) / b.requests for a, b in zip(mine, base, strict=True))
        for name, mine in turns.items()
    }
    passed = not any(more.values())
    figure = ", ".join(f"{name} +{count:g}" for name, count in more.items() if name != "vanilla")
    return Check(STEP, "tokens scheduled a request", passed, figure)


def _rate(turns: list[Turn]) -> float:
    return median(turn.rate for turn in turns)


def _first(turns: dict[str, list[Turn]]) -> str:
    """Time to first token, median, of vanilla and adaptive."""
    base, mine = (
        percentile([t for turn in turns[name] for t in turn.ttft], 50) or 0.0 for name in ALONE
    )
    return f"{mine * 1e3:.1f} ms, vanilla's {base * 1e3:.1f} ms ({mine / base:.2f})"


def row_kernel(engine: Any, context: int) -> list[Check]:
    """Time of one steered row in one layer of this engine's shape. context: of the row."""
    import torch

    config = engine.llm.llm_engine.vllm_config
    model, parallel = config.model_config, config.parallel_config
    shape = {
        "heads": model.get_num_attention_heads(parallel),
        "kv_heads": model.get_num_kv_heads(parallel),
        "dim": model.get_head_size(),
    }
    if torch.cuda.is_available():
        took, floor, what = _on_gpu(shape, context)
    else:
        from adaptvis_vllm.bench.context import measure as measure_context

        (row,) = measure_context([context], dtype=model.dtype, repeats=5, **shape)
        took, floor, what = row["steer_us"], row["read_us"], "reading its K and V once"
    figure = f"{took:.1f} us at {context} tokens; {what}: {floor:.1f} us ({floor / took:.0%})"
    return [Check(STEP, "one steered row, one layer", None, figure)]


def _on_gpu(shape: dict[str, int], context: int) -> tuple[float, float, str]:
    """Microseconds of a row, and of its bytes at the bandwidth that a sum reaches here."""
    import torch
    from triton.testing import do_bench_cudagraph

    from adaptvis_vllm.kernels import steered_attention
    from adaptvis_vllm.kernels.aot.roofline import Model, bytes_moved
    from adaptvis_vllm.kernels.testing import make_timing_cases

    model = Model("", shape["heads"], shape["kv_heads"], shape["dim"], context)
    cold = 4 * torch.cuda.get_device_properties(0).L2_cache_size
    cases = make_timing_cases(model, context, 1, min_bytes=cold)
    outs = [case.empty_out() for case in cases]

    def rows() -> None:
        for case, out in zip(cases, outs, strict=True):
            case.run(steered_attention, out)

    data = torch.empty(1 << 28, dtype=torch.float32, device="cuda").normal_()
    bandwidth = data.numel() * 4 / (do_bench_cudagraph(data.sum) * 1e-3)
    took = do_bench_cudagraph(rows) * 1e3 / len(cases)
    floor = bytes_moved(model, context) / bandwidth * 1e6
    return took, floor, f"its bytes at {bandwidth / 1e12:.2f} TB/s"
