"""A batch job on disk: its folder, what it must not forget between attempts, its result."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adaptvis_vllm.batch import outputs
from adaptvis_vllm.batch.formats import make_engine
from adaptvis_vllm.batch.inputs import Input, open_input
from adaptvis_vllm.batch.parts import SUFFIX, Parts
from adaptvis_vllm.files import lines
from adaptvis_vllm.options import check_apart

# Settings that may differ between the attempts of one job.
FREE = ("workers", "ray_address", "cpus", "gpus")


@dataclass
class Settings:
    """What a job does. `engine`: arguments of vLLM's `LLM`; the rest as in `run`."""

    engine: dict[str, Any]
    workers: int = 1
    ray_address: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    kind: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    logprobs: int | None = None
    maps: str | None = None
    stub: Any = None  # tests: makes another engine

    def identity(self) -> dict[str, Any]:
        """What answers depend on, for JSON."""
        values = {k: v for k, v in vars(self).items() if k not in (*FREE, "stub")}
        return json.loads(json.dumps(values, default=str, sort_keys=True))

    def maker(self, source: Input) -> Any:
        """Builds the engine; picklable."""
        if self.stub is not None:
            return self.stub
        return partial(
            make_engine,
            self.engine,
            source.kind,
            str(source.folder),
            self.logprobs,
            self.defaults,
            0.25 / max(1, self.workers),
            self.maps,
        )


class Job:
    """OUTPUT and its folder OUTPUT.job. Use `open_job`.

    attempt: counts the starts. parts: what is finished. complete: nothing is left to do.
    """

    def __init__(self, output: Path, settings: Settings, source: Input, state: dict[str, Any]):
        self.output = output
        self.settings = settings
        self.source = source
        self.state = state
        self.folder = job_folder(output)
        self.parts = Parts(self.folder, source.total)
        self.attempt: int = state["attempt"]

    @property
    def complete(self) -> bool:
        return bool(self.state["complete"])

    @property
    def missing(self) -> int:
        return self.source.total - self.parts.done

    def finish(self, summary: dict[str, Any]) -> None:
        """Write OUTPUT and the summary; drop the parts unless error rows may be retried."""
        kind, logprobs = self.source.kind, self.settings.logprobs is not None
        outputs.write(self.output, kind, logprobs, self.parts.rows)
        write_json(summary_path(self.output), summary)
        self.state |= {"complete": True, "summary": summary}
        write_json(self.folder / "job.json", self.state)
        if not summary["errors"]:
            self.drop_parts()

    def drop_parts(self) -> None:
        for path in self.folder.glob(f"*{SUFFIX}"):
            path.unlink(missing_ok=True)


def job_folder(output: Path) -> Path:
    return output.with_name(output.name + ".job")


def summary_path(output: Path) -> Path:
    return output.with_name(output.name + ".summary.json")


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once."""
    partial_path = path.with_name(f".{path.name}.tmp")
    with partial_path.open("wb") as out:
        out.write(lines.dumps(value, indent=1) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    partial_path.replace(path)


@contextmanager
def open_job(
    path: Path,
    output: Path,
    settings: Settings,
    *,
    resume: bool = False,
    retry_errors: bool = False,
    overwrite: bool = False,
) -> Iterator[Job]:
    """Start or continue the job that answers `path` into `output`.

    ValueError if it exists and none of the three is set, if another process works on it, or
    if input or settings are not those it began with.
    """
    if output.suffix not in outputs.SUFFIXES:
        raise ValueError(f"the output must end in .jsonl or .parquet, not {output.name!r}")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"no such folder: {output.absolute().parent}")
    check_apart(output, path)
    folder = job_folder(output)
    with _locked(output):
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
            output.unlink(missing_ok=True)
        known = folder / "job.json"
        going_on = resume or retry_errors
        if not going_on and (known.exists() or output.exists()):
            raise ValueError(f"{output} or its job exists: --resume, --retry-errors or --overwrite")
        if retry_errors and not known.exists():
            raise ValueError(f"there is no job to retry: {folder} does not exist")
        if output.exists() and not known.exists():
            raise ValueError(f"{output} exists and is no job's: --overwrite replaces it")
        folder.mkdir(exist_ok=True)
        source = open_input(path, folder / "listing.jsonl", settings.columns, settings.kind)
        identity = {
            "input": source.identity(),
            "kind": source.kind,
            "output": output.suffix,
            "settings": settings.identity(),
        }
        identity = json.loads(lines.dumps(identity))  # as it is read back
        state: dict[str, Any] = {"identity": identity, "attempt": 0, "complete": False}
        if known.exists():
            state = json.loads(known.read_text(encoding="utf-8"))
            changed = list(_differences(state["identity"], identity))
            if changed:
                raise ValueError(f"{folder} belongs to another job: " + "; ".join(changed))
            if state["complete"] and not output.exists():
                raise ValueError(f"the job is complete, but {output} is gone: --overwrite")
        job = Job(output, settings, source, state)
        job.parts.poll()
        if retry_errors and (not state["complete"] or job.parts.errors):
            # On disk with the attempt: whatever goes on after a crash must forget them too.
            state |= {"complete": False, "errors_from": state["attempt"] + 1}
        if not job.complete:
            job.parts.forget_errors(state.get("errors_from", 0))
            state["attempt"] += 1
            job.attempt = state["attempt"]
            write_json(known, state)
        elif not state["summary"]["errors"]:
            job.drop_parts()
        yield job


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield f"{name} was {old!r:.100}, is {new!r:.100}"


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """One process a job; the lock ends with the process."""
    folder = job_folder(output)
    path = folder.with_name(f".{folder.name}.lock")
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process works on {output}") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
