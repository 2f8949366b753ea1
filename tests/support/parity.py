"""Answers of two ways to run the same rows, and how they must agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from adaptvis_vllm.maps.maps import Maps
from support.cases import read_rows
from support.commands import here
from support.engine import flat
from support.maps_parity import assert_maps

OPTIONS = (
    *("--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", str(64 * 2**20)),
    *("--max-num-seqs", "8", "--limit-mm-per-prompt", '{"image": 3}', "--logprobs", "5"),
    # Small enough that the long prompts take several chunks.
    *("--max-num-batched-tokens", "48", "--enable-chunked-prefill", "--block-size", "32"),
)


def answer(
    command: str,
    model: Path,
    rows: Path,
    name: str,
    *options: str,
    by: Callable[..., CompletedProcess[str]] = here,
) -> list[dict[str, Any]]:
    """Rows written by `adaptvis COMMAND`; as `maps` of a row its maps. by: `here`, or `apart`
    for what needs a process of its own."""
    out, maps = rows.with_name(f"{name}.jsonl"), rows.with_name(f"{name}-maps")
    files = ("--input", rows, "--output", out, "--maps", maps)
    done = by(command, "--model", model, *files, *options)
    assert done.returncode == 0, done.stderr[-4000:]
    return read_answers(out, maps)


def read_answers(out: Path, maps: Path) -> list[dict[str, Any]]:
    """Output rows with their maps, as `maps`; None where there are none."""
    rows = read_rows(out)
    for row in rows:
        file = maps / f"{row['id']}.npz"
        row["maps"] = Maps.load(file) if file.exists() else None
    return rows


def first_logprobs(row: dict[str, Any]) -> dict[int, float]:
    return dict(map(tuple, row["logprobs"][0]))


def difference(row: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of the first token's log-probabilities that both list."""
    mine, theirs = first_logprobs(row), first_logprobs(other)
    common = mine.keys() & theirs.keys()
    assert common
    return max(abs(mine[token] - theirs[token]) for token in common)


def same_report(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Transformers reads a token without the prompt before it, thus without its space."""
    mine, theirs = flat(row["adaptvis"]), flat(other["adaptvis"])
    for report in (mine, theirs):
        for name in [name for name in report if name.endswith(".token")]:
            report[name] = report[name].strip()
    return mine == pytest.approx(theirs, abs=1e-4)


def assert_parity(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row["error"] is None
        assert row["token_ids"] == other["token_ids"], row["id"]
        assert difference(row, other) < 1e-4, row["id"]
        assert same_report(row, other), (row["adaptvis"], other["adaptvis"])
        assert_maps(row["maps"], other["maps"], row["id"])
