"""Run a job: in this process, or on Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptvis_vllm.batch.inputs import decode
from adaptvis_vllm.batch.job import Job, Settings, open_job
from adaptvis_vllm.batch.parts import MISSING, PartWriter
from adaptvis_vllm.batch.progress import Progress
from adaptvis_vllm.batch.summary import summarize
from adaptvis_vllm.offline.stream import Item, Stream, doomed

POLL_SECONDS = 0.5
PASSES = 3


def run(
    path: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    resume: bool = False,
    retry_errors: bool = False,
    overwrite: bool = False,
    progress: Callable[[Job], Progress] | None = None,
) -> dict[str, Any]:
    """Answer every row of the input; returns the summary, which `OUTPUT.summary.json` has too.

    An interrupted job keeps what it finished: resume=True goes on. ValueError for wrong
    input or settings, RuntimeError if the job cannot be finished.
    """
    options = {"resume": resume, "retry_errors": retry_errors, "overwrite": overwrite}
    with open_job(Path(path), Path(output), settings, **options) as job:
        if job.complete:
            return job.state["summary"]
        begun, before = time.monotonic(), job.parts.done
        tokens = job.parts.tokens
        for _ in range(PASSES):
            if not job.missing:
                break
            with Watch(job, progress(job) if progress else None):
                _local(job) if settings.workers == 0 else _ray(job)
            job.parts.poll()
        if job.missing:
            raise RuntimeError(f"{job.missing} rows are still not answered: --resume goes on")
        seconds = time.monotonic() - begun
        summary = summarize(job, seconds, job.parts.done - before, job.parts.tokens - tokens)
        job.finish(summary)
        return summary


class Watch:
    """Follows the part files in a thread and shows progress."""

    def __init__(self, job: Job, progress: Progress | None) -> None:
        self.job, self.progress = job, progress
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        last = False
        while not last:
            last = self.over.wait(POLL_SECONDS)
            self.job.parts.poll()
            if self.progress is not None:
                self.progress.show(self.job.parts, last=last)


class _Rows:
    """A `Source`: the job's unfinished rows."""

    def __init__(self, job: Job) -> None:
        suspects = job.parts.suspects()
        todo = job.parts.status == MISSING
        self.items = (
            Item(key, doomed(decode(raw), suspects.get(key, 0)), key in suspects)
            for piece in job.source.pieces
            if todo[piece.first : piece.first + piece.count].any()
            for key, raw in piece.read()
            if todo[key]
        )

    def take(self, block: bool) -> Item | None:
        try:
            return next(self.items)
        except StopIteration:
            raise EOFError from None


def _local(job: Job) -> None:
    rows = _Rows(job)
    engine = job.settings.maker(job.source)()
    writer = PartWriter(job.folder, job.attempt)
    try:
        for key, answer in Stream(engine, writer.started).run(rows):
            writer.write([(key, answer)])
    finally:
        writer.close()
        if hasattr(engine, "close"):
            engine.close()


def _ray(job: Job) -> None:
    from adaptvis_vllm.batch import pool

    with pool.connected(job.settings):
        pool.answer_pieces(job)
