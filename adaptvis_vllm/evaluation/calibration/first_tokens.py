"""Answers of one token under many alphas, from one request a question: its candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptvis_vllm.evaluation.answers import answer
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.left_out import LeftOut
from adaptvis_vllm.evaluation.table import PLAIN
from adaptvis_vllm.steering.defaults import max_candidates
from adaptvis_vllm.steering.params import Candidates


@dataclass(frozen=True)
class FirstTokens:
    """Of one question. texts: alpha -> answer, `PLAIN`'s among them. report: `report.Report` as a
    dict. plain: tokens computed for the unsteered answer. rows: rows computed beside them."""

    texts: Mapping[float, str]
    report: Mapping[str, Any]
    plain: int

    @property
    def rows(self) -> int:
        return len(self.report["candidates"])


def has_room(llm: Any, alphas: Sequence[float], max_tokens: int) -> bool:
    """Whether one request can have all these answers."""
    count = len(set(alphas) - {PLAIN})
    return max_tokens == 1 and 1 <= count <= max_candidates(llm.llm_engine.vllm_config)


def first_tokens(
    llm: Any,
    questions: Sequence[Question],
    alphas: Sequence[float],
    *,
    where: Mapping[str, Any],
    left_out: LeftOut | None,
    **options: Any,
) -> tuple[Sequence[Question], list[FirstTokens]]:
    """The questions that are not left out, and one of each. alphas: distinct; those that
    `has_room` allows. where: further fields of the steering. left_out: as in `sweep`. options: of
    `answer`.

    Without an image the answer is the same under every alpha.
    """
    others = [alpha for alpha in alphas if alpha != PLAIN]
    asked = [Candidates(others, **where)]
    rows = answer(llm, questions, asked, max_tokens=1, **options)
    if left_out is not None:
        questions, rows = left_out.answered(questions, rows)
    out = []
    for (found,) in rows:
        texts = dict.fromkeys([PLAIN, *others], found.text)
        texts |= {c["alpha"]: c["token"] for c in found.report["candidates"]}
        out.append(FirstTokens(texts, found.report, found.computed))
    return questions, out
