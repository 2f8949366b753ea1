"""Accuracy by right answer and by confidence, for several columns of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.datasets.own import GROUPS_MAX
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.html.page import Table

BINS = 5  # of confidence, each with as many questions


@dataclass(frozen=True)
class Part:
    """Some of the questions. rows: their indices [N]. accuracy: by column, in [0, 1]."""

    name: str
    rows: NDArray[np.intp]
    accuracy: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "questions": len(self.rows), "accuracy": dict(self.accuracy)}


def by_answer(questions: Sequence[Question], columns: Mapping[str, NDArray[Any]]) -> list[Part]:
    """columns: name -> [Q] scores. By each question's first right answer, in lower case.

    Nothing where there are as good as none or too many different answers.
    """
    answers = np.array([question.answers[0].lower() for question in questions])
    names = sorted(set(answers.tolist()))
    if not 1 < len(names) <= GROUPS_MAX:
        return []
    return [_part(name, np.flatnonzero(answers == name), columns) for name in names]


def by_confidence(confidence: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> list[Part]:
    """confidence: [Q], NaN where not known. In equal groups, from the least certain on.

    Questions of equal confidence are in one group; nothing where all are equal.
    """
    known = np.flatnonzero(~np.isnan(confidence))
    values, counts = np.unique(confidence[known], return_counts=True)
    if len(values) < 2:
        return []
    before = np.cumsum(counts) - counts
    group = before * BINS // len(known)
    out = []
    for number in np.unique(group):
        inside = values[group == number]
        rows = known[np.isin(confidence[known], inside)]
        out.append(_part(f"{inside[0]:.3f} to {inside[-1]:.3f}", rows, columns))
    return out


def table(parts: Sequence[Part], what: str) -> Table:
    """A line a part, a column each. what: heading of the names."""
    columns = list(parts[0].accuracy)
    rows = [
        [part.name, str(len(part.rows)), *(f"{100 * part.accuracy[c]:.1f}" for c in columns)]
        for part in parts
    ]
    return Table([what, "questions", *columns], rows, title=f"By {what}", note="Percent.")


def _part(name: str, rows: NDArray[np.intp], columns: Mapping[str, NDArray[Any]]) -> Part:
    return Part(name, rows, {c: float(scores[rows].mean()) for c, scores in columns.items()})
