"""The command `adaptvis bench`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptvis_vllm.bench import runs
from adaptvis_vllm.bench.model import Shape
from adaptvis_vllm.bench.report import page
from adaptvis_vllm.bench.runs import Pool, Settings
from adaptvis_vllm.bench.shapes import SHAPES
from adaptvis_vllm.bench.systems import NAMES
from adaptvis_vllm.bench.throughput import say
from adaptvis_vllm.bench.workloads import WORKLOADS

RUNS: dict[str, Callable[[Settings, Pool], None]] = {
    "throughput": runs.run_throughput,
    "serve": runs.run_serve,
    "share": runs.run_share,
    "images": runs.run_images,
    "context": runs.run_context,
    "profile": runs.run_profile,
    "workers": runs.run_workers,
}
PAIR = ("vanilla", "adaptive")
MAIN = ("vanilla", "idle", "scaling", "adaptive")
EVERYTHING = (*MAIN, "mix-10", "mix-50", "two-request", "reference")


def main(argv: Sequence[str], doc: str) -> int:
    """0: done. Failures are raised."""
    args = _parser(doc).parse_args(list(argv))
    if args.what == "report":
        page(args.out, args.page or args.out / "RESULTS.md")
        return 0
    settings = _settings(args, argv)
    settings.check()
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if settings.model == "random" else "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    todo = [(args.what, settings)]
    if args.what == "all":
        import torch

        todo = plan(settings, args.dtypes, gpus=torch.cuda.device_count())
    pool = Pool()
    try:
        for what, one in todo:
            say(one.command)
            RUNS[what](one, pool)
    finally:
        pool.close()
    if args.what == "all":
        page(args.out, args.page or args.out / "RESULTS.md")
    return 0


def plan(s: Settings, dtypes: Sequence[str], gpus: int = 0) -> list[tuple[str, Settings]]:
    """What `adaptvis bench all` runs: (benchmark, its settings).

    gpus: of this machine. `context` measures the CPU's way of steering; on a GPU
    `benchmarks/kernel.py` does it, and a worker has a GPU of its own.
    """
    out: list[tuple[str, Settings]] = []

    def add(what: str, name: str, **values: Any) -> None:
        one = replace(s, name=name, **({"rate": None} if what == "throughput" else {}) | values)
        out.append((what, replace(one, command=one_command(what, one))))

    few = max(2, s.requests // 2)
    for dtype in dtypes:  # what shares an engine lies together
        add("throughput", f"short16-{dtype}", dtype=dtype, systems=EVERYTHING)
        add("throughput", f"short4-{dtype}", dtype=dtype, systems=MAIN, changes={"max_tokens": 4})
        add("profile", f"profile-{dtype}", dtype=dtype, systems=MAIN)
        if dtype != dtypes[0]:
            continue
        add("throughput", "alone", dtype=dtype, systems=PAIR, concurrency=1, requests=few)
        for name in WORKLOADS:
            if name != "short":
                add("throughput", name, dtype=dtype, systems=PAIR, workload=name, requests=few)
        add("share", "share", dtype=dtype)
        add("images", "images-count", dtype=dtype, systems=PAIR, requests=few)
    online = (*MAIN, "two-request")
    add("serve", "serve", dtype=dtypes[0], systems=online, rate=None)
    if s.rate is not None:
        add("serve", "serve-poisson", dtype=dtypes[0], systems=online)
        add("throughput", "arrivals", dtype=dtypes[0], systems=MAIN, rate=s.rate)
    if not gpus:
        add("context", "context")
    workers = (1,) if gpus == 1 else s.workers
    rows = max(4 * s.requests, runs.FEWEST_ROWS * max(workers))
    add("workers", "workers", dtype=dtypes[0], requests=rows, workers=workers)
    return out


def one_command(what: str, s: Settings) -> str:
    """The command line that runs just this."""
    plain = Settings()
    words = ["adaptvis", "bench", what]
    numbers = ("requests", "concurrency", "rounds", "launches", "rate", "seed")
    for name in ("model", "dtype", "workload", *numbers):
        if getattr(s, name) != getattr(plain, name):
            words += [f"--{name}", f"{getattr(s, name)}"]
    for name in ("systems", "contexts", "workers"):
        if tuple(getattr(s, name)) != tuple(getattr(plain, name)):
            words += [f"--{name}", ",".join(map(str, getattr(s, name)))]
    for name, value in s.changes.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if s.engine:
        words += ["--engine", json.dumps(s.engine)]
    if isinstance(s.shape, str):
        words += ["--shape", s.shape]
    elif s.shape != plain.shape:
        changed = {k: v for k, v in vars(s.shape).items() if v != getattr(plain.shape, k)}
        words += ["--shape", json.dumps(changed)]
    return shlex.join(words)


def _parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adaptvis bench", description=doc)
    add = parser.add_argument
    add("what", choices=(*RUNS, "all", "report"), help="report: the page of a folder's results")
    add("--model", default="random", help="name or folder; default: a random LLaVA-1.5 shape")
    add("--shape", help=f"{', '.join(SHAPES)}; or JSON: {', '.join(vars(Shape()))}")
    add("--dtype", default="float32")
    add("--dtypes", default="float32,bfloat16", type=_names, help="of `all`")
    add("--systems", type=_names, help=f"{','.join(NAMES)},mix-PERCENT; default {','.join(MAIN)}")
    add("--workload", default="short", help=", ".join(WORKLOADS))
    add("--requests", type=int, default=16, help="conversations a round (rows, for workers)")
    add("--concurrency", type=int, default=16)
    add("--rate", type=float, help="of serve and throughput: Poisson arrivals, requests/s")
    add("--rounds", type=int, default=5, help="of a launch")
    add("--launches", type=int, default=1, help="so often engines are started anew")
    add("--contexts", type=_numbers, default=Settings.contexts, help="of context")
    add("--workers", type=_numbers, default=Settings.workers, help="of workers, default 1,2")
    add("--images", type=int, help="a request")
    add("--width", type=int, help="of an image, in pixels")
    add("--height", type=int)
    add("--max-tokens", type=int, help="of an answer, which always has as many")
    add("--turns", type=int, help="of a conversation")
    add("--seed", type=int, default=0)
    add("--engine", help="JSON: arguments of vLLM's LLM that win over those chosen here")
    add("--out", type=Path, default=Path("out/bench"), help="folder of results")
    add("--name", help="of the result's files; default: the benchmark's name")
    add("--page", type=Path, help="of all and report; default OUT/RESULTS.md")
    return parser


def _settings(args: argparse.Namespace, argv: Sequence[str]) -> Settings:
    fields = ("images", "width", "height", "max_tokens", "turns")
    values = {n: getattr(args, n) for n in Settings.__dataclass_fields__ if hasattr(args, n)}
    shape = _shape(args.shape)
    values |= {
        "systems": args.systems or MAIN,
        "shape": shape,
        "engine": _json("--engine", args.engine),
        "changes": {n: getattr(args, n) for n in fields if getattr(args, n) is not None},
    }
    settings = Settings(**values)
    return replace(settings, command=one_command(args.what, settings))


def _shape(text: str | None) -> Shape | str:
    if text and not text.lstrip().startswith("{"):
        if text not in SHAPES:
            raise ValueError(f"--shape: {text!r} is no JSON and not one of {', '.join(SHAPES)}")
        return text
    try:
        return Shape(**_json("--shape", text))
    except TypeError as error:
        raise ValueError(f"--shape: {error}") from None


def _json(option: str, text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object, not {text!r}")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
