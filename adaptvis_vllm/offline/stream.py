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

from adaptvis_vllm.offline.search import LONELY, Row, Search

LOADERS = 4
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

    def tokens(self) -> dict[str, int]:
        """How many each row has that steps have been about, also after a failed one. Rows that
        wait for their first step are left out."""

    def answer(self, prepared: Any, output: Any) -> Answer:
        """Raises where the output is none."""

    def refuse(self, value: Any, error: Exception) -> Answer:
        """The error row."""

    def rebuild(self) -> None:
        """Replace the engine after a failed step. What it held is lost."""


class EngineFailed(Exception):
    """An error row's reason: the engine broke on this row alone, or gave it up."""


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
        self.running: dict[str, Row] = {}
        self.lonely: deque[Item] = deque()  # run alone when the engine has nothing else to do
        self.search = Search(engine.window)

    def run(self, source: Source) -> Iterator[tuple[Any, Answer]]:
        """(tag, answer) of every row, in the order of completion, until `source` ends."""
        self.open = True
        with ThreadPoolExecutor(LOADERS) as pool:
            try:
                while self.open or self._busy() or self.lonely:
                    self._look_ahead(source, pool)
                    yield from self._fill()
                    if self.running:
                        yield from self._step()
            finally:
                for _, future in self.ahead:
                    future.cancel()

    def _busy(self) -> bool:
        """With rows that need not run alone."""
        return bool(self.running or self.ahead or self.search.waiting)

    def _look_ahead(self, source: Source, pool: ThreadPoolExecutor) -> None:
        while self.open and len(self.ahead) < 2 * LOADERS:
            try:
                item = source.take(block=not (self._busy() or self.lonely))
            except EOFError:
                self.open = False
                return
            if item is None:
                return
            if item.alone:
                self.lonely.append(item)
            else:
                self.ahead.append((item, pool.submit(self.engine.prepare, item.value)))

    def _fill(self) -> Iterator[tuple[Any, Answer]]:
        """Move rows into the engine, first those by which a culprit is sought."""
        search = self.search
        if search.closed:
            return
        if search.singles:  # the engine is empty: its last step failed, or a single is done
            row, why = search.singles.popleft()
            yield from self._enter([row], alone=why)
            return
        probe = search.next_probe()
        if probe:
            yield from self._enter(probe, search.probed)
            return
        yield from self._enter(search.next_test(), search.tested)
        room = min(self.engine.window - len(self.running), len(search.innocent))
        yield from self._enter([search.innocent.popleft() for _ in range(room)])
        if self.ahead and not self.running:
            wait([future for _, future in self.ahead], return_when=FIRST_COMPLETED)
        yield from self._fill_ahead()
        if self.lonely and not self._busy():
            item = self.lonely.popleft()
            try:
                row = Row(item, self.engine.prepare(item.value))
            except Exception as error:
                yield item.tag, self.engine.refuse(item.value, error)
            else:
                yield from self._enter([row], alone=LONELY)

    def _fill_ahead(self) -> Iterator[tuple[Any, Answer]]:
        """Rows that the threads have made ready, as far as there is room."""
        waiting: deque[tuple[Item, Future[Any]]] = deque()
        rows: list[Row] = []
        while self.ahead and len(self.running) + len(rows) < self.engine.window:
            item, future = self.ahead.popleft()
            if not future.done():
                waiting.append((item, future))
                continue
            try:
                rows.append(Row(item, future.result()))
            except Exception as error:
                yield item.tag, self.engine.refuse(item.value, error)
        self.ahead.extendleft(reversed(waiting))
        yield from self._enter(rows)

    def _enter(
        self, rows: list[Row], names: set[str] | None = None, alone: str = ""
    ) -> Iterator[tuple[Any, Answer]]:
        """names: gets the engine's, of those that it takes. alone: why the row must be."""
        tags = []
        for row in rows:
            try:
                name = self.engine.enqueue(row.prepared)
            except Exception as error:  # nothing is queued: the row alone is at fault
                yield row.item.tag, self.engine.refuse(row.item.value, error)
                continue
            self.running[name] = row
            self.search.alone = alone
            tags.append(row.item.tag)
            if names is not None:
                names.add(name)
        if tags:
            self.started(tags, bool(alone))

    def _step(self) -> Iterator[tuple[Any, Answer]]:
        try:
            finished = self.engine.step()
        except Exception as error:
            yield from self._recover(error)
            return
        self.search.stepped(self.engine.tokens() if self.search.probed else {})
        for name, output in finished:
            row = self.running.pop(name)
            self.search.finished(name)
            try:
                answer = self.engine.answer(row.prepared, output)
            except Exception as error:  # it is this output's: the engine goes on
                answer = self.engine.refuse(row.item.value, error)
            yield row.item.tag, answer

    def _recover(self, error: Exception) -> Iterator[tuple[Any, Answer]]:
        """A new engine in place of the failed one."""
        guilty = self.search.failed(self.running, self.engine.tokens(), error)
        self.running = {}
        if guilty is not None:
            reason = EngineFailed(f"the engine failed on this row alone: {error!r:.500}")
            yield guilty.item.tag, self.engine.refuse(guilty.item.value, reason)
        self.engine.rebuild()
