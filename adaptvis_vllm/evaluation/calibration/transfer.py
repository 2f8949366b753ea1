"""How calibrated settings do on questions that took no part in choosing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.calibration.first_tokens import first_tokens, has_room
from adaptvis_vllm.evaluation.calibration.selection import Candidate
from adaptvis_vllm.evaluation.calibration.sweep import tabulated
from adaptvis_vllm.evaluation.datasets.question import Question, Scorer
from adaptvis_vllm.evaluation.left_out import LeftOut, not_allowed
from adaptvis_vllm.evaluation.stats import Interval, interval, paired
from adaptvis_vllm.evaluation.table import PLAIN, SweepTable


@dataclass(frozen=True)
class Result:
    """One candidate on one split of so many questions. gain: over the base, paired."""

    candidate: Candidate
    questions: int
    accuracy: Interval
    gain: Interval


def transfer(
    llm: Any,
    questions: Sequence[Question],
    scorer: Scorer,
    candidates: Sequence[Candidate],
    *,
    max_tokens: int,
    left_out: LeftOut | None = None,
    **options: Any,
) -> list[Result]:
    """Answered by the engine. candidates: the base comes first. left_out: as in `sweep`.

    options: of `answer`.
    """
    options["refuse"] = left_out.add if left_out else not_allowed
    alphas = _alphas(candidates)
    fields = ("layers", "heads", "span", "rule")
    steered = [c.params for c in candidates if c.params.mode != "off"]
    places = [{n: getattr(params, n) for n in fields} for params in steered]
    if has_room(llm, alphas, max_tokens) and all(where == places[0] for where in places):
        questions, found = first_tokens(
            llm,
            questions,
            alphas,
            where=places[0],
            left_out=left_out,
            **options,
        )
        table = tabulated(questions, found, scorer, alphas, places[0])
        return from_table(table, candidates)
    settings = [c.params for c in candidates]
    rows = answer(llm, questions, settings, max_tokens=max_tokens, **options)
    if left_out is not None:
        questions, rows = left_out.answered(questions, rows)
    right = np.array(
        [[scorer(q, one.text) for one in row] for q, row in zip(questions, rows, strict=True)]
    )
    return _results(candidates, right.T)


def _alphas(candidates: Sequence[Candidate]) -> list[float]:
    """All that they use, ascending."""
    used = {PLAIN}
    for one in candidates:
        alphas = (one.params.alpha, one.params.alpha_low, one.params.alpha_high)
        used |= {alpha for alpha in alphas if alpha is not None}
    return sorted(used)


def from_table(table: SweepTable, candidates: Sequence[Candidate]) -> list[Result]:
    """From answers under every alpha. candidates: the base comes first."""
    return _results(candidates, np.array([table.scores_of(c.params) for c in candidates]))


def _results(candidates: Sequence[Candidate], scores: NDArray[Any]) -> list[Result]:
    """scores: [candidates, Q]."""
    return [
        Result(candidate, len(column), interval(column), paired(scores[0], column))
        for candidate, column in zip(candidates, scores, strict=True)
    ]
