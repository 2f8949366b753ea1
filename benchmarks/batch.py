"""Throughput of `adaptvis batch`: against `LLM.chat`, against lock-step, and by workers.

Run as python benchmarks/batch.py [--rows N] [--repeats N] [--scaling].
Rows ask for 1 to 32 tokens, half of them are steered. Engine start is not counted. Lock-step
waits for every call's last row; its cost is in the engine steps, each of which takes an
accelerator nearly the same time however full it is. On a CPU it hardly shows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from adaptvis_vllm.batch.actor import CALLS, EngineThread
from adaptvis_vllm.batch.formats import make_engine
from adaptvis_vllm.batch.inputs import decode, open_input
from adaptvis_vllm.batch.parts import PartWriter
from adaptvis_vllm.bench.model import Shape, make_model
from adaptvis_vllm.bench.workers import scaling
from adaptvis_vllm.bench.workloads import Workload, tasks
from adaptvis_vllm.files.lines import read_lines
from adaptvis_vllm.offline.engine import VllmEngine
from adaptvis_vllm.offline.schema import parse_row
from adaptvis_vllm.offline.stream import Item, Stream

SEQS = 16
CALL_ROWS = 32
IMAGES = 64
SHAPE = Shape(layers=6, hidden=256, heads=8, kv_heads=4, vocab=512, image=168, vision_layers=2)
PICTURES = Workload("batch", width=320, height=240)


def write_rows(folder: Path, rows: int, first: int = 0) -> Path:
    """first: rows of two files that differ share no prompt."""
    path = folder / f"{first}.jsonl"
    steer = [None, {"alpha": 1.5}, None, {"alpha_low": 0.5, "alpha_high": 1.5, "threshold": 0.4}]
    with path.open("w") as out:
        for number in range(first, first + rows):
            row = {
                "id": number,
                "image": f"{number % IMAGES}.png",
                "question": f"{number}: where is the red cat?",
                "max_tokens": 1 + number * 7 % 32,
                "adaptvis": steer[number % 4],
            }
            out.write(json.dumps(row) + "\n")
    return path


def chat(engine: VllmEngine, rows: list[Any], folder: Path) -> list[Any]:
    """`LLM.chat` of all rows at once, pictures loaded first."""
    from vllm import SamplingParams

    parsed = [parse_row(row, folder) for row in rows]
    params = [
        SamplingParams(
            max_tokens=r.max_tokens,
            temperature=0,
            extra_args=r.steering.extra_args() if r.steering else None,
        )
        for r in parsed
    ]
    return engine.llm.chat([r.messages for r in parsed], params, use_tqdm=False)


class Rows:
    """A source of all rows of a file."""

    def __init__(self, path: Path, folder: Path) -> None:
        source = open_input(path, folder / "listing")
        self.rows = (pair for piece in source.pieces for pair in piece.read())

    def take(self, block: bool) -> Item:
        for key, raw in self.rows:
            return Item(key, decode(raw))
        raise EOFError


def streamed(engine: VllmEngine, path: Path, folder: Path) -> int:
    """What --workers 0 does: read, answer, write parts."""
    writer = PartWriter(folder, 1)
    count = 0
    for key, answer in Stream(engine, writer.started).run(Rows(path, folder)):
        writer.write([(key, answer)])
        count += 1
    writer.close()
    return count


def in_process(folder: Path, engine: VllmEngine, rows: int, repeats: int) -> None:
    times: dict[str, list[float]] = {
        "LLM.chat": [],
        "--workers 0": [],
        "lock-step": [],
        "calls": [],
    }

    steps: dict[str, list[int]] = {name: [] for name in times}
    original, count = engine.llm.llm_engine.step, [0]

    def step() -> Any:
        count[0] += 1
        return original()

    engine.llm.llm_engine.step = step

    def timed(name: str, work: Any) -> None:
        count[0] = 0
        began = time.perf_counter()
        work()
        times[name].append(time.perf_counter() - began)
        steps[name].append(count[0])

    thread = EngineThread(lambda: engine)
    for repeat in range(repeats + 1):
        path = write_rows(folder, rows, first=repeat * rows)
        values = list(read_lines(path))
        calls = [values[n : n + CALL_ROWS] for n in range(0, rows, CALL_ROWS)]

        def overlapping(calls: list[Any] = calls) -> None:
            with ThreadPoolExecutor(CALLS) as pool:
                list(pool.map(lambda c: thread.answers(c, list(range(len(c))), set()), calls))

        def lockstep(calls: list[Any] = calls) -> None:
            for call in calls:
                chat(engine, call, folder)

        work = {
            "LLM.chat": lambda values=values: chat(engine, values, folder),
            "--workers 0": lambda path=path: streamed(engine, path, folder),
            "lock-step": lockstep,
            "calls": overlapping,
        }
        for name, function in work.items():
            engine.llm.reset_prefix_cache()
            timed(name, function)
    print(f"{rows} rows, {SEQS} at once, calls of {CALL_ROWS} rows, median of {repeats}")
    base = statistics.median(times["LLM.chat"][1:])  # the first round warms up
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        done = statistics.median(steps[name][1:])
        print(
            f"{name:<12} {rows / median:8.1f} rows/s   {base / median:.3f} of LLM.chat"
            f"   {done:.0f} engine steps"
        )
    thread.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scaling", action="store_true", help="on Ray, 1 and 2 workers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model", SHAPE)
        for number, task in enumerate(tasks(PICTURES, IMAGES, seed=0)):
            task.images[0].save(folder / f"{number}.png")
        options = {
            "model": str(model),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 1024,
            "kv_cache_memory_bytes": 256 * 2**20,
            "max_num_seqs": SEQS,
            "disable_log_stats": True,
        }
        if args.scaling:
            lines = scaling(write_rows(folder, args.rows), args.rows, options)
            for line in lines:
                print(f"{line['workers']} workers    {line['rows_per_s'] or math.nan:8.1f} rows/s")
            if all(line["rows_per_s"] for line in lines):
                print(f"2 workers / 1: {lines[1]['rows_per_s'] / lines[0]['rows_per_s']:.2f}")
        else:
            engine = make_engine(options, folder=str(folder))
            in_process(folder, engine, args.rows, args.repeats)


if __name__ == "__main__":
    main()
