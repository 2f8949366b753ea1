"""Rows/s of `adaptvis batch` with one and with two workers on Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptvis_vllm.batch import Settings, run
from adaptvis_vllm.batch.driver import POLL_SECONDS
from adaptvis_vllm.batch.job import Job
from adaptvis_vllm.batch.progress import Progress
from adaptvis_vllm.bench.systems import ADAPTIVE
from adaptvis_vllm.bench.throughput import say
from adaptvis_vllm.bench.workloads import Workload, tasks


def write_rows(folder: Path, chosen: Workload, count: int, seed: int = 0) -> Path:
    """An input of `adaptvis batch`, every row steered adaptively."""
    params = {k: getattr(ADAPTIVE, k) for k in ("alpha_low", "alpha_high", "threshold")}
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for number, task in enumerate(tasks(chosen, count, seed)):
            names = []
            for place, image in enumerate(task.images):
                names.append(f"{number}.{place}.png")
                image.save(folder / names[-1], compress_level=1)
            row = {
                "id": number,
                "images": names,
                "question": task.questions[0],
                "max_tokens": task.max_tokens,
                "adaptvis": params,
            }
            out.write(json.dumps(row) + "\n")
    return path


def scaling(
    path: Path, rows: int, options: dict[str, Any], workers: Sequence[int] = (1, 2)
) -> list[dict[str, Any]]:
    """Rows/s between 20% and 80% of the job, one core a worker; one line per worker count.

    options: the engine's. `whole_rows_per_s` counts the starts of Ray and the engines too.
    """
    out = []
    for count in workers:
        samples: list[tuple[float, int]] = []

        class Sampled(Progress):
            def show(self, parts: Any, last: bool = False, samples: Any = samples) -> None:
                samples.append((time.perf_counter(), parts.done))

        def progress(job: Job, kind: Any = Sampled) -> Progress:
            return kind(job.source.total, 0)

        began = time.perf_counter()
        target = path.with_name(f"out{count}.jsonl")
        run(path, target, Settings(options, count, cpus=1), overwrite=True, progress=progress)
        whole = time.perf_counter() - began
        middle = [(at, done) for at, done in samples if 0.2 * rows <= done <= 0.8 * rows]
        rate = None
        if middle and middle[-1][0] - middle[0][0] >= 4 * POLL_SECONDS:
            (begun, first), (ended, last) = middle[0], middle[-1]
            rate = (last - first) / (ended - begun)
        else:
            say("too few rows to tell the rate of the middle of the job")
        out.append({"workers": count, "rows_per_s": rate, "whole_rows_per_s": rows / whole})
    return out
