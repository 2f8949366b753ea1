"""Which row makes an engine's steps fail.

Rows that were in their first step are suspects before all others, and quickly tested: half of
them enter the next engine, and nothing else before each has its first token; if a step fails,
half of that half is next. If none of them is to blame, the rows that were further on are tried
again, beside rows that nobody suspects. If a step fails then, suspects are those that are where
they were when it failed before, else a half of them. One or two run alone: a row that fails
alone is to blame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# So many rows on which the engine failed alone, with no step between them that did not fail:
# then it is not the rows.
SICK = 5
FEW = 2  # suspects, that are cheaper to run alone than to test in company
# Why a row runs alone.
LONELY, LAST, PROOF = "it killed processes", "it is the last suspect", "does the engine work?"


@dataclass(eq=False)
class Row:
    """A row on its way. item: its `stream.Item`. prepared: what the engine made of it.

    tokens: that it had when a step failed; -1 if none did.
    """

    item: Any
    prepared: Any
    tokens: int = -1


class Search:
    """Told of every step; says what may enter the engine next. window: rows in the engine."""

    def __init__(self, window: int) -> None:
        self.patience = SICK * window.bit_length()
        self.innocent: deque[Row] = deque()  # lost in a failed step that was not their fault
        # Groups of suspects; the last group is tested next.
        self.first: list[list[Row]] = []  # the step that failed was their first
        self.later: list[list[Row]] = []
        self.singles: deque[tuple[Row, str]] = deque()  # to run alone, and why
        # What is in the engine of that.
        self.probed: set[str] = set()  # of `first`, without a token yet
        self.tested: set[str] = set()  # of `later`
        self.alone = ""  # why the only row is
        self.healthy = True  # a step did not fail since the first failure of this search
        self.blamed = 0  # rows, with no such step between them
        self.fruitless = 0  # failures, with no finished or blamed row between them

    @property
    def waiting(self) -> bool:
        return bool(self.innocent or self.first or self.later or self.singles)

    @property
    def closed(self) -> bool:
        """Whether nothing may enter the engine now."""
        return bool(self.alone or self.probed)

    def next_probe(self) -> list[Row]:
        """Rows that may fail in their first step, to enter before all others."""
        if not self.first:
            return []
        half, rest = _halves(self.first.pop())
        if rest:
            self.first.append(rest)
        return half

    def next_test(self) -> list[Row]:
        """Rows that may fail later."""
        return self.later.pop() if self.later and not self.tested else []

    def stepped(self, tokens: Mapping[str, int]) -> None:
        """A step did not fail. tokens: `Engine.tokens` while rows are probed."""
        self.blamed, self.healthy = 0, True
        self.probed -= {name for name, count in tokens.items() if count}
        if self.alone == PROOF:
            self._release()

    def finished(self, name: str) -> None:
        """A row was answered."""
        self.fruitless = 0
        self.probed.discard(name)
        self.tested.discard(name)
        self.alone = ""

    def failed(
        self, running: Mapping[str, Row], tokens: Mapping[str, int], error: Exception
    ) -> Row | None:
        """A step failed, and all rows in the engine are lost; the one to blame, once it is found.

        RuntimeError if it is the engine that is to blame.
        """
        self.fruitless += 1
        if self.fruitless > self.patience:
            raise RuntimeError(
                f"the engine failed {self.fruitless} times without finishing a row: {error!r}"
            ) from error
        probed, tested, alone = self.probed, self.tested, self.alone
        if not (probed or tested or alone or self.waiting):
            self.healthy = False
        self.probed, self.tested, self.alone = set(), set(), ""
        if alone or (probed and len(running) == 1):
            return self._blame(next(iter(running.values())), error)
        self._suspect(running, tokens, probed, tested)
        return None

    def _suspect(
        self,
        running: Mapping[str, Row],
        tokens: Mapping[str, int],
        probed: set[str],
        tested: set[str],
    ) -> None:
        """Sort the lost rows."""
        early = [row for name, row in running.items() if not tokens or tokens.get(name) == 0]
        late = [row for name, row in running.items() if tokens.get(name)]
        idle = [row for row in running.values() if row not in early and row not in late]
        if len(running) == 1:
            self._alone(running.values())
            return
        if probed:  # nothing else was in its first step
            chief = [row for name, row in running.items() if name in probed and row in early]
            self.innocent += [*idle, *late]
            if len(chief) == 1:
                self._alone(chief)
            elif chief:
                self.first.append(chief)
            return
        again = [row for name, row in running.items() if name in tested and row in late]
        others = [row for row in late if row not in again]
        counts = {row: tokens[name] for name, row in running.items() if row in late}
        same = [row for row in again if row.tokens == counts[row]]
        for row in late:
            row.tokens = counts[row]
        if 0 < len(same) < len(again):
            rest = [row for row in again if row not in same]
        else:
            same, rest = _halves(again)
        self.later += [group for group in (rest, same) if len(group) > FEW]
        for group in (same, rest):
            if len(group) <= FEW:
                self._alone(group)
        if others:
            self.later.insert(0 if again else len(self.later), others)
        if early:
            self.first.append(early)
        self.innocent += idle

    def _blame(self, row: Row, error: Exception) -> Row:
        self.fruitless = 0
        self.blamed += 1
        if self.blamed >= SICK:
            raise RuntimeError(
                f"the engine failed on {self.blamed} rows alone, one after the other: {error!r}"
            ) from error
        groups = self.first or self.later
        if self.healthy:
            self._release()
        elif groups:
            self.singles.append((groups[-1].pop(), PROOF))
            groups[:] = [group for group in groups if group]
        return row

    def _release(self) -> None:
        """Somebody else was to blame."""
        for group in (*reversed(self.later), *reversed(self.first)):
            self.innocent += group
        self.innocent += [row for row, _ in self.singles]
        self.first, self.later, self.singles = [], [], deque()

    def _alone(self, rows: Iterable[Row]) -> None:
        self.singles += [(row, LAST) for row in rows]


def _halves(group: list[Row]) -> tuple[list[Row], list[Row]]:
    """Newer ones first: they are nearer to what made the step fail."""
    middle = len(group) // 2
    return group[middle:], group[:middle]
