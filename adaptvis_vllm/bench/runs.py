"""The benchmarks, each from settings to a saved result."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from adaptvis_vllm.bench import report, serve, throughput
from adaptvis_vllm.bench.host import Host
from adaptvis_vllm.bench.model import Shape, make_model
from adaptvis_vllm.bench.profile import PARTS
from adaptvis_vllm.bench.shapes import write_shape
from adaptvis_vllm.bench.systems import REFERENCE, system
from adaptvis_vllm.bench.throughput import Engines
from adaptvis_vllm.bench.turns import Turn, as_json, percentile, ratio, summary
from adaptvis_vllm.bench.workloads import Workload, workload
from adaptvis_vllm.engine.compilation import settle

SHARES = (0, 25, 50, 75, 100)
IMAGES = (1, 2, 4)
CPU_CACHE_BYTES = 2 << 30
MIN_SEQS = 16
FEWEST_ROWS = 128  # a worker: batch.pool lets the first to start take up to 96


class Pool:
    """Keeps the engines of one run for the next one that wants the same."""

    def __init__(self) -> None:
        self._key: Any = None
        self._current: Any = None

    def get(self, kind: Any, options: dict[str, Any]) -> Engines:
        """`Engines` of `Host`s or of `Server`s; others than the last ones close those."""
        if self._key != (kind, options):
            self.close()
            self._key, self._current = (kind, options), Engines(kind, options)
        return self._current

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
        self._key = self._current = None


@dataclass
class Settings:
    """What a run does. model: a name, a folder, or "random" for a checkpoint of `shape`: a
    `Shape`, or the name of one of `SHAPES`, whose weights vLLM makes up. engine: arguments of
    vLLM's `LLM` that override those chosen here. changes: of the workload."""

    model: str = "random"
    dtype: str = "float32"
    systems: Sequence[str] = ("vanilla", "idle", "scaling", "adaptive")
    workload: str = "short"
    requests: int = 16
    concurrency: int = 16
    rounds: int = 5
    launches: int = 1
    rate: float | None = None
    contexts: Sequence[int] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    workers: Sequence[int] = (1, 2)
    seed: int = 0
    shape: Shape | str = field(default_factory=Shape)
    engine: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    out: Path = Path("out/bench")
    name: str | None = None
    command: str = ""

    def check(self) -> None:
        for name in ("requests", "concurrency", "rounds", "launches"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be >= 1, not {getattr(self, name)}")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"--rate must be > 0, not {self.rate}")
        if self.model != "random" and not Path(self.model).is_dir() and "/" not in self.model:
            raise ValueError(f"--model: {self.model!r} is no folder, no hub name and not 'random'")
        for name in self.systems:
            chosen = system(name)
            if chosen.host == REFERENCE and isinstance(self.shape, str):
                raise ValueError("--systems: reference needs weights, which --shape NAME has not")
        self.work()

    def work(self, **changes: Any) -> Workload:
        return workload(self.workload, **(self.changes | changes))

    def options(self, engines: int) -> dict[str, Any]:
        """Of the engines, so many of which share the machine."""
        import torch

        model = self.model
        more: dict[str, Any] = {}
        if model == "random":
            if isinstance(self.shape, Shape):
                model = str(make_model(self.out / "model", self.shape, self.seed))
            else:
                model = str(write_shape(self.out / self.shape, self.shape))
                more = {"load_format": "dummy"}
        options: dict[str, Any] = more | {
            "model": model,
            "dtype": self.dtype,
            "max_model_len": 4096,
            "max_num_seqs": max(MIN_SEQS, self.concurrency),
            "limit_mm_per_prompt": {"image": max(*IMAGES, self.work().images)},
            "enable_prefix_caching": True,
            "use_tqdm_on_load": False,
        }
        if torch.cuda.is_available():
            options["gpu_memory_utilization"] = round(0.9 / engines, 2)
        else:
            options["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
        return settle(options | self.engine)

    def model_name(self) -> str:
        """For people; of a folder its name alone."""
        if self.model == "random":
            dummy = isinstance(self.shape, str)
            return f"{self.shape}, dummy weights" if dummy else str(self.shape)
        return Path(self.model).name if Path(self.model).is_dir() else self.model

    def facts(self, **more: Any) -> dict[str, Any]:
        """For the result."""
        chosen = self.work()
        return {
            "model": self.model_name(),
            "dtype": self.dtype,
            "workload": self.workload,
            "images a request": chosen.images,
            "image": f"{chosen.width}x{chosen.height}",
            "answer tokens": chosen.max_tokens,
            "turns": chosen.turns,
            "requests a round": self.requests,
            "concurrency": self.concurrency,
            "launches": self.launches,
            "rounds": self.rounds,
            "seed": self.seed,
        } | more

    def save(self, kind: str, title: str, rows: list[dict[str, Any]], **more: Any) -> None:
        """Write the result and print its table."""
        settings = more.pop("settings", None) or self.facts()
        result = {
            "kind": kind,
            "title": title,
            "command": self.command,
            "settings": settings,
            "rows": rows,
            **more,
        }
        report.save(self.out, self.name or kind, result)
        print(f"\n{title}\n{report.table(result)}")
        for note in more.get("notes", ()):
            print(note)


def _turns(
    s: Settings,
    pool: Pool,
    names: Sequence[str],
    chosen: Workload,
    profile: bool = False,
    rate: bool = False,
) -> dict[str, list[Turn]]:
    """Turns of an offline run. rate: requests arrive as the settings say, if they do."""
    return throughput.run(
        pool.get(Host, s.options(len({system(name).host for name in s.systems}))),
        [system(name) for name in names],
        chosen,
        requests=s.requests,
        concurrency=s.concurrency,
        rounds=s.rounds,
        launches=s.launches,
        rate=s.rate if rate else None,
        seed=s.seed,
        profile=profile,
    )


def _title(s: Settings, text: str) -> str:
    chosen = s.work()
    return f"{text}: {s.workload}, {s.dtype}, {chosen.max_tokens} tokens an answer"


def run_throughput(s: Settings, pool: Pool) -> None:
    """All systems in turn, offline: `concurrency` at once, or Poisson arrivals at `rate`."""
    if s.rate and any(system(name).host == REFERENCE for name in s.systems):
        raise ValueError("--rate: reference answers one request at a time; leave it out")
    turns = _turns(s, pool, s.systems, s.work(), rate=True)
    facts = s.facts(arrivals=_arrivals(s))
    title = _title(s, f"Offline, {_arrivals(s)}")
    notes = _notes(s, turns) + (_late(turns) if s.rate else [])
    rows = summary(turns)
    s.save("throughput", title, rows, settings=facts, turns=as_json(turns), notes=notes)


def _arrivals(s: Settings) -> str:
    return f"Poisson arrivals, {s.rate:g}/s" if s.rate else f"{s.concurrency} at once"


def _late(turns: dict[str, list[Turn]]) -> list[str]:
    """First tokens under load, median and 90%, by system; to vanilla's where it ran."""
    times = {name: [v for t in mine for v in t.ttft] for name, mine in turns.items()}
    notes = []
    for name, values in times.items():
        points = [percentile(values, p) or 0.0 for p in (50, 90)]
        text = f"{name}: first token after {points[0]:.2f} s at the median, {points[1]:.2f} at 90%"
        if name != "vanilla" and "vanilla" in times:
            base = [percentile(times["vanilla"], p) or 0.0 for p in (50, 90)]
            text += f", {points[0] / base[0]:.2f} and {points[1] / base[1]:.2f} times vanilla's"
        notes.append(text + ".")
    return notes


def _notes(s: Settings, turns: dict[str, list[Turn]]) -> list[str]:
    """Ratios of adaptive to what one would do without it, and what its first token costs."""
    notes = []
    for other in ("two-request", "reference"):
        if "adaptive" in turns and other in turns:
            value = ratio(turns, "adaptive", other)
            notes.append(f"adaptive has {value:.2f} times the requests/s of {other}.")
    if s.concurrency == 1 and "adaptive" in turns and "vanilla" in turns:
        base, mine = ([v for t in turns[n] for v in t.ttft] for n in ("vanilla", "adaptive"))
        step = percentile([v for t in turns["vanilla"] for v in t.itl], 50)
        late, early = percentile(mine, 50), percentile(base, 50)
        if step and late is not None and early is not None:
            notes.append(
                f"The first token of an adaptive request comes {(late - early) * 1e3:.1f} ms later "
                f"than vanilla's at the median: {(late - early) / step:.2f} decode steps."
            )
    return notes


def run_serve(s: Settings, pool: Pool) -> None:
    """Over HTTP: fixed concurrency, or Poisson arrivals at `rate`."""
    if any(system(name).host == REFERENCE for name in s.systems):
        raise ValueError("--systems: reference is no server; leave it out")
    turns = serve.run(
        pool.get(serve.Server, s.options(2)),
        [system(name) for name in s.systems],
        s.work(),
        requests=s.requests,
        rounds=s.rounds,
        launches=s.launches,
        concurrency=None if s.rate else s.concurrency,
        rate=s.rate,
        seed=s.seed,
    )
    facts = s.facts(arrivals=_arrivals(s))
    title = _title(s, f"Over HTTP, {_arrivals(s)}")
    notes = _late(turns) if s.rate else []
    s.save("serve", title, summary(turns), settings=facts, turns=as_json(turns), notes=notes)


def run_share(s: Settings, pool: Pool) -> None:
    """Requests/s as the share of adaptively steered requests grows."""
    names = ["vanilla", *(f"mix-{share}" for share in SHARES)]
    turns = _turns(s, pool, names, s.work())
    rows = [
        {**row, "system": "adaptive", "x": int(row["system"].partition("-")[2])}
        for row in summary(turns)
        if row["system"] != "vanilla"
    ]
    title = _title(s, "Share of steered requests")
    s.save("share", title, rows, x="steered %", turns=as_json(turns))


def run_images(s: Settings, pool: Pool, counts: Sequence[int] = IMAGES) -> None:
    """Requests/s as images per request grow."""
    rows, turns = [], {}
    names = [n for n in s.systems if system(n).host != REFERENCE]
    for count in counts:
        these = _turns(s, pool, names, s.work(images=count))
        rows += [{**row, "x": count} for row in summary(these) if row["system"] != "vanilla"]
        turns[count] = as_json(these)
    facts = s.facts() | {"images a request": ", ".join(map(str, counts))}
    title = _title(s, "Images of a request")
    s.save("images", title, rows, x="images", settings=facts, turns=turns)


def run_context(s: Settings, pool: Pool) -> None:
    """Bytes and time of one steered row, by context."""
    import torch

    from adaptvis_vllm.bench import context

    if isinstance(s.shape, str):
        raise ValueError(f"--shape: context takes sizes as JSON, not {s.shape!r}")
    heads, kv_heads = s.shape.heads, s.shape.kv_heads
    dim = s.shape.hidden // heads
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        rows += context.measure(
            s.contexts, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype, repeats=3 * s.rounds
        )
    settings = {
        "heads": heads,
        "kv heads": kv_heads,
        "head size": dim,
        "threads": torch.get_num_threads(),
    }
    s.save("context", "Cost of a steered row, one layer, on the CPU", rows, settings=settings)


def run_profile(s: Settings, pool: Pool) -> None:
    """Milliseconds a request by part of the step."""
    names = [n for n in s.systems if system(n).host != REFERENCE]
    turns = _turns(s, pool, names, s.work(), profile=True)
    rows = []
    for name, mine in turns.items():
        row: dict[str, Any] = {"system": name}
        for part in PARTS:
            row[part] = median(t.parts.get(part, 0.0) / t.requests for t in mine) * 1e3
        total = median(t.seconds / t.requests for t in mine) * 1e3
        row["front end"] = total - sum(row[part] for part in PARTS)
        row["total"] = total
        rows.append(row)
    if rows[0]["system"] == "vanilla":
        for row in rows[1 : len(names)]:
            gap = {k: v - rows[0][k] for k, v in row.items() if k != "system"}
            rows.append({"system": f"{row['system']} - vanilla", **gap})
    s.save("profile", _title(s, "Where the time goes, ms a request"), rows)


def run_workers(s: Settings, pool: Pool) -> None:
    """Rows/s of `adaptvis batch` on Ray."""
    from adaptvis_vllm.bench.workers import scaling, write_rows

    least = FEWEST_ROWS * max(s.workers)
    if len(s.workers) > 1 and s.requests < least:
        raise ValueError(f"--requests must be >= {least} to keep {max(s.workers)} workers busy")
    chosen = s.work()
    options = s.options(1)
    if s.model == "random":
        options["model"] = str(Path(options["model"]).resolve())
    pool.close()
    with tempfile.TemporaryDirectory() as name:
        path = write_rows(Path(name), chosen, s.requests, s.seed)
        rows = scaling(path, s.requests, options, s.workers)
    notes = []
    first, last = rows[0]["rows_per_s"], rows[-1]["rows_per_s"]
    if first and last:
        notes = [f"{rows[-1]['workers']} workers / {rows[0]['workers']}: {last / first:.2f}"]
    facts = {
        k: v for k, v in s.facts().items() if k not in ("launches", "rounds", "requests a round")
    }
    facts["rows"] = s.requests
    title = _title(s, "Ray workers of `adaptvis batch`, all rows adaptive")
    s.save("workers", title, rows, settings=facts, notes=notes)
