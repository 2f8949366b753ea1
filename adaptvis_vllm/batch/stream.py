"""Answer an endless supply of rows with one engine that survives its own failures.

The engine's batch stays full as long as there are rows: pictures are loaded by threads
ahead of it, and answers leave it in the order in which they are finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

LOADERS = 4
# Engine failures without a finished row between them: then it is not the rows.
SICK = 5
# A row in flight at this many processes' deaths runs alone; alone at as many, it is given up.
DEATHS = 2


@dataclass(frozen=True)
class Item:
    """One row on its way. tag: the caller's. alone: it may have killed an engine before."""

    tag: Any
    value: Any
    alone: bool = False


@dataclass(frozen=True)
class Answer:
    """A finished row. tokens: generated ones. branch: "low", "high" or "" (not adaptive)."""

    row: dict[str, Any]
    tokens: int = 0
    branch: str = ""
    error: str | None = None


class Source(Protocol):
    """Where rows come from."""

    def take(self, block: bool) -> Item | None:
        """The next row; None if there is none now. EOFError: there will be no more."""


class Engine(Protocol):
    """What a stream drives; `engine.VllmEngine`, or a stub in a test."""

    window: int  # how many rows it wants at once

    def prepare(self, value: Any) -> Any:
        """Parse a row and load its pictures. Called in threads; raises for a bad row."""

    def enqueue(self, prepared: Any) -> str:
        """Queue a prepared row; raises for a bad one. Returns its id."""

    def step(self) -> list[tuple[str, Any]]:
        """One step; (id, output) of the rows that are finished."""

    def answer(self, prepared: Any, output: Any) -> Answer: ...

    def refuse(self, value: Any, error: Exception) -> Answer:
        """The error row."""

    def rebuild(self) -> None:
        """Replace the engine after a failed step. What it held is lost."""


class EngineFailed(Exception):
    """An error row's reason: the engine broke while it answered this row alone."""


class Doomed(ValueError):
    """Stands for a row that is not to be tried: parsers raise it. value: the row."""

    def __init__(self, value: Any, reason: str) -> None:
        super().__init__(reason)
        self.value = value


def doomed(value: Any, deaths: int) -> Any:
    """The row, or what stands for it when too many processes died answering it alone."""
    if deaths < DEATHS:
        return value
    return Doomed(value, f"{deaths} processes died while they answered this row alone")


class Stream:
    """engine: see `Engine`. started: told of rows that enter it, (tag, alone)."""

    def __init__(
        self, engine: Engine, started: Callable[[list[Any], bool], None] | None = None
    ) -> None:
        self.engine = engine
        self.started = started or (lambda tags, alone: None)
        self.ahead: deque[tuple[Item, Future[Any]]] = deque()
        self.running: dict[str, tuple[Item, Any]] = {}
        self.solo: deque[tuple[Item, Any]] = deque()  # prepared, each to be run alone
        self.failures = 0

    def run(self, source: Source) -> Iterator[tuple[Any, Answer]]:
        """(tag, answer) of every row, in the order of completion, until `source` ends."""
        self.open = True
        with ThreadPoolExecutor(LOADERS) as pool:
            try:
                while self.open or self.ahead or self.running or self.solo:
                    self._look_ahead(source, pool)
                    yield from self._fill()
                    if self.running:
                        yield from self._step()
            finally:
                for _, future in self.ahead:
                    future.cancel()

    def _look_ahead(self, source: Source, pool: ThreadPoolExecutor) -> None:
        while self.open and len(self.ahead) < 2 * LOADERS:
            try:
                item = source.take(block=not (self.ahead or self.running or self.solo))
            except EOFError:
                self.open = False
                return
            if item is None:
                return
            self.ahead.append((item, pool.submit(self.engine.prepare, item.value)))

    def _fill(self) -> Iterator[tuple[Any, Answer]]:
        """Move prepared rows into the engine, or one row that must run alone."""
        if self.ahead and not (self.running or self.solo):
            wait([future for _, future in self.ahead], return_when=FIRST_COMPLETED)
        waiting: deque[tuple[Item, Future[Any]]] = deque()
        tags = []
        while self.ahead and len(self.running) < self.engine.window:
            item, future = self.ahead.popleft()
            if not future.done():
                waiting.append((item, future))
                continue
            try:
                prepared = future.result()
                if item.alone or self.solo:
                    self.solo.append((item, prepared))
                    continue
                self.running[self.engine.enqueue(prepared)] = (item, prepared)
                tags.append(item.tag)
            except Exception as error:  # nothing is queued: the row alone is at fault
                yield item.tag, self.engine.refuse(item.value, error)
            if self.solo:
                break
        self.ahead.extendleft(reversed(waiting))
        if tags:
            self.started(tags, False)
        while self.solo and not self.running:
            item, prepared = self.solo.popleft()
            self.started([item.tag], True)
            try:
                self.running[self.engine.enqueue(prepared)] = (item, prepared)
            except Exception as error:
                yield item.tag, self.engine.refuse(item.value, error)

    def _step(self) -> Iterator[tuple[Any, Answer]]:
        try:
            finished = self.engine.step()
        except Exception as error:
            yield from self._recover(error)
            return
        for name, output in finished:
            item, prepared = self.running.pop(name)
            self.failures = 0
            yield item.tag, self.engine.answer(prepared, output)

    def _recover(self, error: Exception) -> Iterator[tuple[Any, Answer]]:
        """A new engine; the rows that were in the old one run alone, to find the guilty one."""
        self.failures += 1
        if self.failures > SICK:
            raise RuntimeError(
                f"the engine failed {self.failures} times without finishing a row: {error!r}"
            ) from error
        lost = list(self.running.values())
        self.running.clear()
        if len(lost) == 1:
            reason = EngineFailed(f"the engine failed on this row alone: {error!r:.500}")
            yield lost[0][0].tag, self.engine.refuse(lost[0][0].value, reason)
        else:
            self.solo.extend(lost)
        self.engine.rebuild()
