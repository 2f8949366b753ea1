"""Times the steered-attention kernel on a GPU: python benchmarks/kernel.py --out out/kernel.csv

Every figure is device time per call, L2-cold: one CUDA graph holds calls over requests whose KV
together outgrows the L2 cache several times, and the median of its replays is divided by its
calls. Against it stand vLLM's own Triton attention for the same rows (torch's SDPA over K and V
gathered beforehand where vLLM is not installed) and the floor: bytes that must move over the
bandwidth measured on the same card, the better of a large copy and a large sum.

Without a GPU only the counting part runs.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from adaptvis_vllm.kernels import steered_attention, steered_attention_reference
from adaptvis_vllm.kernels.aot.roofline import BANDWIDTH, MODELS, Model, bytes_moved, floor_us
from adaptvis_vllm.kernels.testing import Case, make_timing_cases

CONTEXTS = (128, 640, 2048, 8192, 32768)
ROWS = (1, 4, 16, 64)
# One model of each shape.
DISTINCT = {(m.num_heads, m.num_kv_heads, m.head_dim, m.window): m.name for m in MODELS[::-1]}
MAX_CACHE_BYTES = 20 << 30


@dataclass
class Result:
    model: str
    context: int
    rows: int
    mib: float  # bytes that must move
    floor_us: float  # at the measured bandwidth
    kernel_us: float
    tb_per_s: float
    share: float  # of the measured bandwidth
    other: str  # what other_us times
    other_us: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="CSV to write; a plot goes beside it as .png")
    parser.add_argument("--models", nargs="*", default=list(DISTINCT.values()))
    parser.add_argument("--contexts", nargs="*", type=int, default=CONTEXTS)
    parser.add_argument("--rows", nargs="*", type=int, default=ROWS)
    args = parser.parse_args()
    models = [m for m in MODELS if m.name in args.models]
    if not torch.cuda.is_available():
        print(
            "No CUDA device: Triton's interpreter says nothing about speed, so only bytes follow."
        )
        print_counts(models, args.contexts)
        return
    copied, read = copy_bandwidth(), read_bandwidth()
    bandwidth = max(copied, read)
    print(
        f"{torch.cuda.get_device_name()}, bf16, measured TB/s: copy {copied / 1e12:.2f}, "
        f"read {read / 1e12:.2f}"
    )
    results = []
    print(HEADER)
    for model in models:
        for context in args.contexts:
            for rows in args.rows:
                if bytes_moved(model, context, rows=rows) <= MAX_CACHE_BYTES:
                    results.append(measure(model, context, rows, bandwidth))
                    print(line(results[-1]), flush=True)
    for rows, launches in ((1, 2), (64, 1)):
        case = make_timing_cases(MODELS[0], 256, rows, min_bytes=0)[0]
        print(
            f"host time of a call, {launches} launch(es): {host_us(case, case.empty_out()):.0f} us"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as f:
            writer = csv.DictWriter(f, fieldnames=list(asdict(results[0])))
            writer.writeheader()
            writer.writerows(asdict(r) for r in results)
        plot(results, args.out.with_suffix(".png"))


HEADER = (
    f"{'model':22} {'context':>7} {'rows':>4} {'MiB':>8} {'floor us':>9} {'kernel us':>9} "
    f"{'TB/s':>5} {'share':>7} {'other us':>9}  other"
)


def line(r: Result) -> str:
    return (
        f"{r.model:22} {r.context:7} {r.rows:4} {r.mib:8.1f} {r.floor_us:9.1f} {r.kernel_us:9.1f} "
        f"{r.tb_per_s:5.2f} {r.share:7.0%} {r.other_us:9.1f}  {r.other}"
    )


def print_counts(models: list[Model], contexts: list[int]) -> None:
    print(
        f"{'model':22} {'context':>7} {'MiB/row':>8}"
        + "".join(f" {g + ' us':>8}" for g in BANDWIDTH)
    )
    for model in models:
        for context in contexts:
            n = bytes_moved(model, context)
            floors = "".join(f" {floor_us(n, b):8.2f}" for b in BANDWIDTH.values())
            print(f"{model.name:22} {context:7} {n / 2**20:8.2f}{floors}")


def measure(model: Model, context: int, rows: int, bandwidth: float) -> Result:
    cases = make_timing_cases(model, context, rows, min_bytes=4 * l2_bytes())
    check_one(cases[0])
    outs = [case.empty_out() for case in cases]

    def ours() -> None:
        for case, out in zip(cases, outs, strict=True):
            case.run(steered_attention, out)

    other, theirs = vllm_calls(cases, outs) or sdpa_calls(cases)
    kernel_us = graph_us(ours) / len(cases)
    other_us = graph_us(theirs) / len(cases)
    n = bytes_moved(model, context, rows=rows)
    rate = n / kernel_us / 1e6
    floor = floor_us(n, bandwidth)
    return Result(
        model.name,
        context,
        rows,
        n / 2**20,
        floor,
        kernel_us,
        rate,
        floor / kernel_us,
        other,
        other_us,
    )


def check_one(case: Case) -> None:
    """A fast wrong kernel is worth nothing: the first row against the reference."""
    one = {
        k: case.args[k][:1]
        for k in (
            *("rows", "reqs", "kv_lens", "slots", "span_starts", "span_lens", "rules", "heads"),
        )
    }
    ref = case.run(steered_attention_reference, case.empty_out(torch.float64), **one)
    row = case.rows[0]
    error = (case.run(steered_attention)[row].double() - ref[row]).norm() / ref[row].norm()
    if not error < 1e-2:
        raise SystemExit(f"wrong result: relative error {error:.2e}")


def vllm_calls(
    cases: list[Case], outs: list[torch.Tensor]
) -> tuple[str, Callable[[], None]] | None:
    """vLLM's Triton attention, split over KV as its backend would split it."""
    try:
        from vllm.v1.attention.ops.triton_unified_attention import unified_attention
    except ImportError:
        return None
    a = cases[0].args
    num_rows, (_, num_heads, dim) = len(a["rows"]), a["query"].shape
    num_kv_heads = a["key_cache"].shape[2]
    segments = 16
    q = torch.empty(num_rows, num_heads, dim, dtype=a["query"].dtype, device="cuda").normal_()
    part = torch.empty(num_rows, num_heads, segments, dim, dtype=torch.float32, device="cuda")
    top, total = (torch.empty(num_rows, num_heads, segments, device="cuda") for _ in range(2))
    starts = torch.arange(num_rows + 1, dtype=torch.int32, device="cuda")
    one = torch.ones(num_rows, num_kv_heads, device="cuda")
    result = torch.empty_like(q)

    def run() -> None:
        for case in cases:
            a = case.args
            unified_attention(
                q=q,
                k=a["key_cache"],
                v=a["value_cache"],
                out=result,
                cu_seqlens_q=starts,
                max_seqlen_q=1,
                seqused_k=a["kv_lens"],
                max_seqlen_k=a["max_kv_len"],
                softmax_scale=a["scale"],
                causal=True,
                window_size=(a["window"] - 1, 0),
                block_table=a["block_table"],
                softcap=0.0,
                q_descale=None,
                k_descale=one,
                v_descale=one,
                seq_threshold_3D=128 // num_kv_heads,
                num_par_softmax_segments=segments,
                softmax_segm_output=part,
                softmax_segm_max=top,
                softmax_segm_expsum=total,
            )

    return "vLLM unified_attention", run


def sdpa_calls(cases: list[Case]) -> tuple[str, Callable[[], None]]:
    """torch's attention over contiguous K and V: a stand-in that skips the block table."""
    case = cases[0]
    a = case.args
    keys = min(a["max_kv_len"], a["window"]) if a["window"] else a["max_kv_len"]
    num_kv_heads, dim = a["key_cache"].shape[2:]
    q = a["query"][a["rows"].long()][:, :, None]
    shape = (len(q), num_kv_heads, keys, dim)
    kv = [torch.randn(shape, device="cuda", dtype=q.dtype) for _ in range(2 * len(cases))]

    def run() -> None:
        for k, v in zip(kv[::2], kv[1::2], strict=True):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return "torch SDPA, gathered KV", run


def graph_us(calls: Callable[[], None], replays: int = 15) -> float:
    """Median device time of one pass over the calls, launch gaps left out."""
    calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    times = []
    for i in range(replays + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read plus bytes written per second by a copy of 2 GiB."""
    a, b = (torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2))
    return 2 * a.numel() * a.element_size() / (graph_us(lambda: b.copy_(a)) * 1e-6)


def read_bandwidth() -> float:
    """Bytes read per second by the sum of 4 GiB."""
    a = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    return a.numel() * a.element_size() / (graph_us(lambda: a.sum()) * 1e-6)


def host_us(case: Case, out: torch.Tensor, calls: int = 300) -> float:
    """Time that the host spends in one call, which a captured graph does not pay."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        case.run(steered_attention, out)
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed / calls * 1e6


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


def plot(results: list[Result], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(r.model for r in results))
    figure, axes = plt.subplots(1, len(models), figsize=(3.2 * len(models), 3.4), sharey=True)
    for axis, model in zip([axes] if len(models) == 1 else axes, models, strict=True):
        for rows in sorted({r.rows for r in results}):
            mine = [r for r in results if r.model == model and r.rows == rows]
            axis.plot(
                [r.context for r in mine], [r.share for r in mine], "o-", label=f"{rows} rows"
            )
        axis.set(title=model, xscale="log", xlabel="context", ylim=(0, 1.15))
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.grid(alpha=0.3)
        axis.title.set_fontsize(9)
    (axes if len(models) == 1 else axes[0]).set_ylabel("share of measured bandwidth")
    (axes if len(models) == 1 else axes[0]).legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
