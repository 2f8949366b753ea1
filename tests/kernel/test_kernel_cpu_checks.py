"""What the compiled CPU rows are handed: wrong tensors never reach memory, `python -O` or not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from adaptvis_vllm.kernels.cpu import build as cpu

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 32, 16


def arguments() -> dict[str, Any]:
    """Of one row, right as they are."""
    one = torch.zeros(1, dtype=torch.int32)
    return {
        "output": torch.zeros(3, HEADS, DIM),
        "query": torch.zeros(3, HEADS, DIM),
        "kv_cache": torch.zeros(2, KV_HEADS, BLOCK, 2 * DIM),
        "block_table": torch.zeros(1, 2, dtype=torch.int32),
        "rows": one,
        "reqs": one,
        "kv_lens": one + 5,
        "slots": one,
        "alpha": torch.ones(1),
        "span_words": one,
        "span_starts": one,
        "span_lens": one,
        "rules": one,
        "heads": one[:, None],
        "own": one,
        "scale": 1.0,
        "packed": False,
    }


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"output": torch.zeros(3, HEADS, DIM, dtype=torch.bfloat16)}, "output is"),
    "few heads": ({"output": torch.zeros(3, 2, DIM)}, "do not fit together"),
    "narrow cache": ({"kv_cache": torch.zeros(2, KV_HEADS, BLOCK, DIM)}, "do not fit together"),
    "odd block": ({"kv_cache": torch.zeros(2, KV_HEADS, 8, 2 * DIM)}, "block_size 8"),
    "cache strides": (
        {"kv_cache": torch.zeros(2, BLOCK, KV_HEADS, 2 * DIM).transpose(1, 2)},
        "kv_cache must be contiguous",
    ),
    "query strides": ({"query": torch.zeros(3, DIM, HEADS).transpose(1, 2)}, "heads of query"),
    "long rows": ({"rows": torch.zeros(1, dtype=torch.int64)}, "rows must be .*int32"),
    "double alpha": ({"alpha": torch.ones(1, dtype=torch.float64)}, "alpha must be .*float32"),
    "half sinks": ({"sinks": torch.ones(HEADS, dtype=torch.bfloat16)}, "sinks must be .*float32"),
    "long rules": ({"rules": torch.zeros(1, dtype=torch.int64)}, "rules must be .*int32"),
    "heads of one word too many": (
        {"heads": torch.zeros(1, 2, dtype=torch.int32)},
        r"heads must be \[1, 1\] words, not \[1, 2\]",
    ),
    "heads of too few rows": ({"heads": torch.zeros(0, 1, dtype=torch.int32)}, "heads must be"),
    "heads of another type": ({"heads": torch.zeros(1, 1)}, "heads must be .*int32"),
    "own of another type": ({"own": torch.zeros(1)}, "own must be .*int32"),
    "side rows of another type": (
        {name: torch.zeros(1, KV_HEADS, DIM, dtype=torch.bfloat16) for name in ("key", "value")},
        "key of side rows must be contiguous torch.float32",
    ),
    "table strides": (
        {"block_table": torch.zeros(2, 2, dtype=torch.int32).t()},
        "block_table must be contiguous",
    ),
}


def test_right_ones_pass() -> None:
    cpu.steer_rows(**arguments())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, message = WRONG[name]
    monkeypatch.setattr(cpu, "_library", lambda: pytest.fail("they reached the compiled code"))
    with pytest.raises(ValueError, match=message):
        cpu.steer_rows(**(arguments() | changed))


def test_also_without_asserts() -> None:
    code = f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n" + (
        "import test_kernel_cpu_checks as t\n"
        "for changed, _ in t.WRONG.values():\n"
        "    try:\n"
        "        t.cpu.steer_rows(**(t.arguments() | changed))\n"
        "    except ValueError:\n"
        "        continue\n"
        "    sys.exit('passed')\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
