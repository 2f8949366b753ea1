"""How calibrated settings do on questions that took no part in choosing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.calibration.selection import Candidate
from adaptvis_vllm.evaluation.question import Question, Scorer
from adaptvis_vllm.evaluation.stats import Interval, interval, paired


@dataclass(frozen=True)
class Result:
    """One candidate on one split, answered by the engine. gain: over the base, paired."""

    candidate: Candidate
    accuracy: Interval
    gain: Interval


def transfer(
    llm: Any,
    questions: Sequence[Question],
    scorer: Scorer,
    candidates: Sequence[Candidate],
    **options: Any,
) -> list[Result]:
    """candidates: the base comes first. options: of `answer`."""
    rows = answer(llm, questions, [c.params for c in candidates], **options)
    right = np.array(
        [[scorer(q, one.text) for one in row] for q, row in zip(questions, rows, strict=True)]
    )
    return [
        Result(candidate, interval(column), paired(right[:, 0], column))
        for candidate, column in zip(candidates, right.T, strict=True)
    ]
