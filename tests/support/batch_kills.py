"""A batch job with an engine that takes its time; to be killed. Arguments: folder, option.

The first `BAD` rows are errors until the folder holds a file `mended`.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from adaptvis_vllm.batch import Settings, run
from adaptvis_vllm.offline.stream import Answer

ROWS, BAD = 200, 40


class Slow:
    """One row a step."""

    window = 8

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.queue: list[tuple[str, Any]] = []
        self.names = 0

    def prepare(self, value: Any) -> Any:
        if value["id"] < BAD and not (self.folder / "mended").exists():
            raise ValueError("bad")
        return value

    def enqueue(self, prepared: Any) -> str:
        self.names += 1
        self.queue.append((str(self.names), prepared))
        return str(self.names)

    def step(self) -> list[tuple[str, Any]]:
        time.sleep(self.seconds)
        return [self.queue.pop(0)]

    def tokens(self) -> dict[str, int]:
        return {}

    def answer(self, prepared: Any, output: Any) -> Answer:
        return Answer({"id": prepared["id"], "text": f"answer {prepared['id']}", "error": None}, 1)

    def refuse(self, value: Any, error: Exception) -> Answer:
        return Answer({"id": value["id"], "text": None, "error": str(error)}, error=str(error))

    def rebuild(self) -> None: ...


def job(folder: Path, option: str = "", seconds: float = 0.0) -> dict[str, Any]:
    """option: of `run`, or none. The summary."""
    path = folder / "in.jsonl"
    if not path.exists():
        lines = [json.dumps({"id": number, "question": "?"}) for number in range(ROWS)]
        path.write_text("\n".join(lines))
    settings = Settings({}, 0, stub=partial(Slow, folder, seconds))
    return run(path, folder / "out.jsonl", settings, **{option: True} if option else {})


if __name__ == "__main__":
    job(Path(sys.argv[1]), sys.argv[2], 0.01)
