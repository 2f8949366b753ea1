"""Run a large job with a stub engine and print how the driver's memory grows.

Arguments: rows, workers, folder.
"""

import json
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from adaptvis_vllm.batch import Settings, run
from adaptvis_vllm.batch.driver import POLL_SECONDS
from adaptvis_vllm.batch.job import Job
from adaptvis_vllm.batch.progress import Progress
from adaptvis_vllm.offline.stream import Answer


class StubEngine:
    """Answers at once. The only engine here that is not vLLM's."""

    window = 64

    def __init__(self) -> None:
        self.queued: list[tuple[str, Any]] = []
        self.count = 0

    def prepare(self, value: Any) -> Any:
        return value

    def enqueue(self, prepared: Any) -> str:
        self.count += 1
        self.queued.append((str(self.count), prepared))
        return str(self.count)

    def step(self) -> list[tuple[str, Any]]:
        finished, self.queued = self.queued, []
        return finished

    def tokens(self) -> dict[str, int]:
        return {}

    def answer(self, prepared: Any, output: Any) -> Answer:
        row = {"id": prepared["id"], "text": "x" * 200, "error": None}
        return Answer(row, 5, "low")

    def refuse(self, value: Any, error: Exception) -> Answer:
        raise error

    def rebuild(self) -> None: ...


def main() -> None:
    rows, workers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    path = folder / "in.jsonl"
    with path.open("w") as out:
        for number in range(rows):
            out.write(json.dumps({"id": number, "question": "?" * 500}) + "\n")
    samples: list[tuple[int, float]] = []
    this = psutil.Process()

    def progress(job: Job) -> Progress:
        def sample() -> None:
            while True:
                samples.append((job.parts.done, this.memory_info().rss / 2**20))
                time.sleep(POLL_SECONDS)

        threading.Thread(target=sample, daemon=True).start()
        return Progress(job.source.total, 0)

    began = time.monotonic()
    settings = Settings({}, workers, stub=partial(StubEngine), cpus=1)
    summary = run(path, folder / "out.jsonl", settings, progress=progress)
    samples.append((rows, this.memory_info().rss / 2**20))
    answers = 0
    with (folder / "out.jsonl").open() as lines:
        for number, line in enumerate(lines):
            assert json.loads(line)["id"] == number
            answers += 1
    early = [mib for done, mib in samples if 0.1 * rows <= done <= 0.3 * rows]
    result = {
        "rows": summary["rows"],
        "answers": answers,
        "seconds": round(time.monotonic() - began, 1),
        "early_mib": round(max(early), 1) if early else None,
        "late_mib": round(max(mib for done, mib in samples if done > 0.3 * rows), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
