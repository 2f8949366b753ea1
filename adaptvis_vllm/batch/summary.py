"""What a job did, for people and as JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np

from adaptvis_vllm.batch.job import Job
from adaptvis_vllm.batch.parts import ERROR
from adaptvis_vllm.batch.progress import clock

REASONS = 20
KINDS_KEPT = 1000


def summarize(job: Job, seconds: float, rows: int, tokens: int) -> dict[str, Any]:
    """seconds, rows, tokens: of this attempt; everything else is the whole job's."""
    parts = job.parts
    return {
        "rows": job.source.total,
        "answered": job.source.total - parts.errors,
        "errors": parts.errors,
        "reasons": most_common(reasons(job)),
        "skipped": {why: count for why, (count, _) in job.source.skipped.items()},
        "tokens": parts.tokens,
        "low": parts.branches["low"],
        "high": parts.branches["high"],
        "attempts": job.attempt,
        "this_attempt": {
            "rows": rows,
            "seconds": round(seconds, 3),
            "rows_per_second": round(rows / max(seconds, 1e-9), 3),
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 3),
        },
        "output": str(job.output),
    }


def reasons(job: Job) -> Counter[str]:
    """Error rows by reason, values in quotes and numbers left out."""
    counts: Counter[str] = Counter()
    for key in np.flatnonzero(job.parts.status == ERROR).tolist():
        error = json.loads(job.parts.row(key))["error"]
        while isinstance(error, dict):
            error = error.get("error") or error.get("message") or ""
        kind = re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "…", str(error)))[:120]
        counts[kind if kind in counts or len(counts) < KINDS_KEPT else "other"] += 1
    return counts


def most_common(counts: Counter[str]) -> dict[str, int]:
    """At most `REASONS`; the rest is the last of them, "other"."""
    if len(counts) <= REASONS:
        return dict(counts.most_common())
    shown = dict(counts.most_common(REASONS - 1))
    return shown | {"other": shown.get("other", 0) + counts.total() - sum(shown.values())}


def text(summary: dict[str, Any]) -> str:
    """The table that ends a job."""
    this = summary["this_attempt"]
    lines = [
        ("rows", summary["rows"]),
        ("answered", summary["answered"]),
        ("error rows", summary["errors"]),
        ("tokens", summary["tokens"]),
        ("low / high", f"{summary['low']} / {summary['high']}"),
        ("attempts", summary["attempts"]),
        ("this attempt", f"{this['rows']} rows in {clock(this['seconds'])}"),
        ("", f"{this['rows_per_second']:.2f} rows/s, {this['tokens_per_second']:.1f} tokens/s"),
        ("output", summary["output"]),
    ]
    lines += [("  error", f"{count} x {reason}") for reason, count in summary["reasons"].items()]
    lines += [("skipped", f"{count}, {why}") for why, count in summary["skipped"].items()]
    return "\n".join(f"{name:<13}{value}" for name, value in lines)
