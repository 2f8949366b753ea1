"""The Ray actor: an engine in a thread of its own, fed by several calls at once.

A call's last rows share the engine's batch with the next call's first ones.
"""

from __future__ import annotations

import json
import pickle
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptvis_vllm.batch.inputs import decode
from adaptvis_vllm.batch.parts import MISSING, Parts, PartWriter
from adaptvis_vllm.offline.schema import FIELDS
from adaptvis_vllm.offline.stream import Answer, Engine, Item, Stream, doomed

CALLS = 4  # at once


class Call:
    """One batch of rows on its way through the engine."""

    def __init__(self, rows: int) -> None:
        self.answers: list[Answer | None] = [None] * rows
        self.left = rows
        self.finished = threading.Event()
        self.error: BaseException | None = None
        if not rows:
            self.finished.set()


class EngineThread:
    """Owns the engine. make: builds it, in the thread. started: as in `Stream`."""

    def __init__(
        self,
        make: Callable[[], Engine],
        started: Callable[[list[Any], bool], None] | None = None,
        done: Callable[[list[tuple[Any, Answer]]], None] | None = None,
    ) -> None:
        self.make, self.started, self.done = make, started, done
        self.queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self.calls: set[Call] = set()
        self.lock = threading.Lock()
        self.error: BaseException | None = None
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()
        self.ready.wait()
        if self.error is not None:
            raise self.error

    def answers(self, values: list[Any], keys: list[Any], alone: set[Any]) -> list[Answer]:
        """Blocks until all of them are answered. keys: what `started` and `done` are told."""
        call = Call(len(values))
        with self.lock:
            self.calls.add(call)
            if self.error is not None:
                raise self.error
        for place, (value, key) in enumerate(zip(values, keys, strict=True)):
            self.queue.put(Item((call, place, key), value, key in alone))
        call.finished.wait()
        with self.lock:
            self.calls.discard(call)
        if call.error is not None:
            raise call.error
        return call.answers  # type: ignore[return-value]

    def take(self, block: bool) -> Item | None:
        try:
            item = self.queue.get(block)
        except queue.Empty:
            return None
        if item is None:
            raise EOFError
        return item

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join()

    def _run(self) -> None:
        try:
            engine = self.make()
            self.ready.set()
            for (call, place, key), answer in Stream(engine, self._started).run(self):
                if self.done is not None:
                    self.done([(key, answer)])
                call.answers[place] = answer
                call.left -= 1
                if not call.left:
                    call.finished.set()
            self._end(RuntimeError("the engine's thread was closed"))
        except BaseException as error:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """Nobody may wait for the thread any more, whether or not the engine was ever there."""
        with self.lock:
            self.error = error
            for call in self.calls:
                if call.left:
                    call.error = error
                    call.finished.set()
        self.ready.set()

    def _started(self, tags: list[Any], alone: bool) -> None:
        if self.started is not None:
            self.started([key for _, _, key in tags], alone)


class JobActor:
    """For `map_batches`: rows (key, pickled value) go to a part file; yields what is done.

    suspects: rows that may have killed processes, see `Parts.suspects`.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        folder: str,
        total: int,
        attempt: int,
        suspects: dict[int, int],
    ) -> None:
        job = Path(folder) / "job.json"
        if not job.is_file() or json.loads(job.read_text(encoding="utf-8"))["attempt"] != attempt:
            raise RuntimeError(f"{folder} is not on a file system that all nodes share")
        # An actor that took a dead one's place gets its rows again.
        before = Parts(Path(folder), total, attempt)
        before.poll()
        self.status = before.status
        self.suspects = suspects | before.suspects()
        self.writer = PartWriter(Path(folder), attempt)
        self.engine = EngineThread(make, self.writer.started, self.writer.write)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        keys, values = [], []
        for key, row in zip(batch["key"].to_pylist(), batch["row"], strict=True):
            if self.status[key] == MISSING:
                keys.append(key)
                value = decode(pickle.loads(row.as_py()))
                values.append(doomed(value, self.suspects.get(key, 0)))
        answers = self.engine.answers(values, keys, set(self.suspects))
        bad = sum(answer.error is not None for answer in answers)
        return pa.table({"rows": [len(batch)], "errors": [bad]})


class DatasetActor:
    """For `map_batches` on a user's dataset: rows in, output rows out, in the same order.

    keep: input columns that are copied to the output. logprobs: whether rows have any.
    """

    def __init__(
        self, make: Callable[[], Engine], kind: str, logprobs: bool, keep: tuple[str, ...]
    ) -> None:
        self.engine = EngineThread(make)
        self.kind, self.logprobs, self.keep = kind, logprobs, keep

    def __call__(self, batch: Any) -> Any:
        from adaptvis_vllm.offline import tables

        names = [n for n in batch.column_names if n not in self.keep or n == "id"]
        unknown = [n for n in names if self.kind == "rows" and n not in FIELDS]
        if unknown:
            raise ValueError(f"columns {unknown} are no input fields: keep or drop them")
        values = [decode(row) for row in tables.rows_of(batch.select(names))]
        answers = self.engine.answers(values, list(range(len(values))), set())
        whole = "id" not in names or str(batch.schema.field("id").type).startswith("int")
        columns = tables.schema(self.kind, tables.id_type([0] if whole else [""]), self.logprobs)
        out = tables.table([answer.row for answer in answers], columns)
        for name in self.keep:
            if name not in out.column_names:
                out = out.append_column(name, batch[name])
        return out
