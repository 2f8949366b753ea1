"""An engine for streams that counts steps and fails as it is told, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from adaptvis_vllm.offline.stream import Answer, Item


class CountingEngine:
    """Rows are whole numbers; each wants `length` tokens, one a step, up to `batch` rows a step.

    wrong(step, rows): whether that step fails; rows are (row, token that it is about) pairs.
    """

    def __init__(
        self,
        wrong: Callable[[int, list[tuple[int, int]]], bool] = lambda step, rows: False,
        *,
        batch: int = 16,
        length: Callable[[int], int] = lambda row: 9 + row % 3,
    ) -> None:
        self.wrong, self.batch, self.length = wrong, batch, length
        self.window = batch + batch // 4
        self.steps = self.rebuilt = self.names = 0
        self.queue: dict[str, list[int]] = {}  # name -> row, tokens
        self.held = self.most_held = 0  # prepared rows that are not answered

    def prepare(self, value: Any) -> int:
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        return int(value)

    def enqueue(self, prepared: int) -> str:
        self.names += 1
        self.queue[str(self.names)] = [prepared, 0]
        return str(self.names)

    def step(self) -> list[tuple[str, Any]]:
        self.steps += 1
        assert self.queue, "a step without rows"
        now = list(self.queue.items())[: self.batch]
        if self.wrong(self.steps, [(row, tokens + 1) for _, (row, tokens) in now]):
            raise FloatingPointError("wrong")
        done = []
        for name, entry in now:
            entry[1] += 1
            if entry[1] == self.length(entry[0]):
                done.append((name, self.queue.pop(name)[0]))
        return done

    def tokens(self) -> dict[str, int]:
        return {name: tokens for name, (_, tokens) in list(self.queue.items())[: self.batch]}

    def answer(self, prepared: int, output: int) -> Answer:
        self.held -= 1
        assert prepared == output
        return Answer({"id": prepared})

    def refuse(self, value: Any, error: Exception) -> Answer:
        self.held -= 1
        return Answer({"id": value}, error=str(error))

    def rebuild(self) -> None:
        self.rebuilt += 1
        self.queue = {}


class Rows:
    """A source. alone: rows that killed processes before."""

    def __init__(self, rows: Iterable[int], alone: Iterable[int] = ()) -> None:
        self.rows, self.alone = iter(rows), set(alone)

    def take(self, block: bool) -> Item | None:
        try:
            row = next(self.rows)
        except StopIteration:
            raise EOFError from None
        return Item(row, row, row in self.alone)
