"""How long a decoder layer's matrix products take on a CPU, by the rows of the step.

    python benchmarks/matrices.py --rows 4096 4098 4108

The products are vLLM's (`vllm._custom_ops.onednn_mm`), of the layer that `adaptvis bench` makes:
768 wide, 2,048 inside, float32. Row counts take turns; of each product the least time counts.
"""

from __future__ import annotations

import argparse
import time

import torch

HIDDEN, INNER = 768, 2048
SHAPES = ((HIDDEN, 3 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * INNER), (INNER, HIDDEN))


def seconds(rows: list[int], repeats: int) -> dict[int, float]:
    """Rows -> seconds of all products together."""
    from vllm import _custom_ops as ops

    total = dict.fromkeys(rows, 0.0)
    for columns, outputs in SHAPES:
        product = ops.create_onednn_mm(torch.randn(outputs, columns).t(), 32)
        inputs = {n: torch.randn(n, columns) for n in rows}
        least = dict.fromkeys(rows, float("inf"))
        for repeat in range(repeats):
            for n in rows[:: -1 if repeat % 2 else 1]:
                begun = time.perf_counter()
                ops.onednn_mm(product, inputs[n], None)
                least[n] = min(least[n], time.perf_counter() - begun)
        for n in rows:
            total[n] += least[n]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 4098, 4104, 4108, 4112, 4128])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    found = seconds(args.rows, args.repeats)
    first = args.rows[0]
    print(f"{'rows':>6} {'ms':>8} {'of ' + str(first):>8} {'rows of it':>10}")
    for n, spent in found.items():
        print(f"{n:6} {1e3 * spent:8.1f} {spent / found[first]:8.3f} {n / first:10.4f}")


if __name__ == "__main__":
    main()
