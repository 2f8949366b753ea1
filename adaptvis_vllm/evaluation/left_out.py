"""Rows of own data that cannot be asked or answered: they are left out, and told.

Of a published benchmark every question must be answered, or its figures mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question, Refused

# What becomes of a question that cannot be asked or answered, and why: raise, or remember it.
Refuse = Callable[[Question, str], None]
T = TypeVar("T")


def not_allowed(question: Question, reason: str) -> None:
    raise ValueError(f"question {question.id}: {reason}")


class LeftOut:
    """benchmark: what is asked. splits: those of it that are; None is the default one.

    rows: what is left out, the bad rows of those splits from the beginning.
    """

    def __init__(self, benchmark: Benchmark, *splits: str | None) -> None:
        self.lenient = benchmark.lenient
        self.rows: list[Refused] = list(
            dict.fromkeys(row for split in splits for row in benchmark.refused_of(split))
        )
        self.gone: set[int] = set()

    def add(self, question: Question, reason: str) -> None:
        """A `Refuse`."""
        if not self.lenient:
            not_allowed(question, reason)
        self.gone.add(id(question))
        self.rows.append(Refused("", question.id, reason))

    def rest(self, questions: Sequence[Question]) -> tuple[Question, ...]:
        """Those that are not left out; ValueError if all are."""
        kept = tuple(question for question in questions if id(question) not in self.gone)
        if questions and not kept:
            raise ValueError(f"question {self.rows[-1].id}: {self.rows[-1].error}")
        return kept

    def answered(
        self, questions: Sequence[Question], answers: Sequence[list[T]]
    ) -> tuple[tuple[Question, ...], list[list[T]]]:
        """The rest of the questions, and its answers."""
        return self.rest(questions), [found for found in answers if found]

    def notes(self) -> list[str]:
        """For a reader of the figures."""
        count = len(self.rows)
        return [f"{count} rows could not be asked or answered and are left out."] if count else []


def status(rows: Sequence[Refused], file: Path) -> int:
    """Of a command: 3 if there are rows left out, which stderr is told. file: what lists them."""
    if not rows:
        return 0
    print(f"{len(rows)} rows are left out: see `errors` in {file}", file=sys.stderr)
    return 3
