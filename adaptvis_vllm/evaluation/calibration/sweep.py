"""One pass over the questions that finds every answer and every confidence.

The requests of a question follow one another and share its prompt through the prefix cache, so
each alpha after the first computes only the block that holds the last prompt token, and its own
answer. Confidences come from the engine itself: of the scaled requests one a measure is sent as
an adaptive one whose two alphas are the same, which reports it. Answers of one token come from one
request a question, where the engine has room for its candidates: each is a row more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptvis_vllm.evaluation.answers import Answer, answer
from adaptvis_vllm.evaluation.calibration.first_tokens import (
    FirstTokens,
    first_tokens,
    has_room,
)
from adaptvis_vllm.evaluation.datasets.question import Question, Scorer
from adaptvis_vllm.evaluation.left_out import LeftOut, not_allowed
from adaptvis_vllm.evaluation.table import PLAIN, SweepTable
from adaptvis_vllm.steering.fields import CONFIDENCES, check_field
from adaptvis_vllm.steering.params import AdaptVis, Off, ScalingVis, SteeringParams

# The published ones, and some on either side.
ALPHAS = (0.125, 0.25, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Sweep:
    """table: what was found. plain_tokens: computed for the unsteered answers, which is what a
    plain run of the questions costs; all_tokens: for all answers, rows of candidates among them;
    both 0 where the answers were not given by an engine here."""

    table: SweepTable
    plain_tokens: int = 0
    all_tokens: int = 0

    @property
    def cost(self) -> float:
        """In plain runs."""
        return self.all_tokens / self.plain_tokens


def numbers(text: str) -> list[Any]:
    """What --alphas lists; ValueError for what is no number."""
    out: list[Any] = []
    for part in text.split(","):
        try:
            out.append(float(part))
        except ValueError:
            raise ValueError(f"--alphas must be numbers with commas, not {text!r}") from None
    return out


def check_alphas(values: Sequence[float]) -> tuple[float, ...]:
    """Ascending, distinct, with `PLAIN`; ValueError unless there is another one, or for a bad
    one."""
    alphas = sorted({check_field("alpha", value, "") for value in values} | {PLAIN})
    if len(alphas) < 2:
        raise ValueError("alphas must hold another value than 1")
    return tuple(alphas)


def requests(alphas: Sequence[float], **where: Any) -> list[tuple[float, SteeringParams]]:
    """(alpha, steering) of each request of a question; the unsteered one comes first. where:
    further fields of the steering.

    Where the grid is too short to carry all measures, requests with alpha 1 are added.
    """
    others: list[float | None] = [alpha for alpha in alphas if alpha != PLAIN]
    others += [None] * (len(CONFIDENCES) - len(others))
    out: list[tuple[float, SteeringParams]] = [(PLAIN, Off())]
    for number, alpha in enumerate(others):
        if number < len(CONFIDENCES):
            both = PLAIN if alpha is None else alpha
            kind = CONFIDENCES[number]
            steering = AdaptVis(both, both, 0.5, confidence=kind, **where)
        else:
            steering = ScalingVis(alpha, **where)
        out.append((PLAIN if alpha is None else alpha, steering))
    return out


def sweep(
    llm: Any,
    questions: Sequence[Question],
    scorer: Scorer,
    alphas: Sequence[float] = ALPHAS,
    *,
    layers: str | None = None,
    span: str = "embeddings",
    heads: str | None = None,
    rule: str = "multiply",
    max_tokens: int,
    chat: bool = False,
    progress: bool = False,
    left_out: LeftOut | None = None,
) -> Sweep:
    """Answer every question under every alpha.

    llm: a vLLM `LLM` with prefix caching and small blocks. left_out: takes the questions that
    cannot be answered, which are an error without it. The rest as in `answer`.
    ValueError for a question that steering cannot change: one without an image.
    """
    alphas = check_alphas(alphas)
    where = {"layers": layers, "span": span, "heads": heads, "rule": rule}
    options: dict[str, Any] = {
        "chat": chat,
        "progress": progress,
        "refuse": left_out.add if left_out else not_allowed,
    }
    if has_room(llm, alphas, max_tokens):
        questions, found = first_tokens(
            llm, questions, alphas, where=where, left_out=left_out, **options
        )
        for question, one in zip(questions, found, strict=True):
            _check_steered(question, bool(one.report["candidates"]), one.report)
        return Sweep(
            tabulated(questions, found, scorer, alphas, where),
            plain_tokens=sum(one.plain for one in found),
            all_tokens=sum(one.plain + one.rows for one in found),
        )
    sent = requests(alphas, **where)
    steerings = [steering for _, steering in sent]
    rows = answer(llm, questions, steerings, max_tokens=max_tokens, **options)
    if left_out is not None:
        questions, rows = left_out.answered(questions, rows)
    kept = [(0, sent[0][0])] + [(i, a) for i, (a, _) in enumerate(sent) if a != PLAIN]
    columns = [i for i, _ in sorted(kept, key=lambda pair: pair[1])]
    table = _table(
        questions,
        [[row[i].text for i in columns] for row in rows],
        scorer,
        alphas,
        _confidences(questions, rows, sent),
        where,
    )
    return Sweep(
        table,
        plain_tokens=sum(row[0].computed for row in rows),
        all_tokens=sum(one.computed for row in rows for one in row),
    )


def tabulated(
    questions: Sequence[Question],
    found: Sequence[FirstTokens],
    scorer: Scorer,
    alphas: Sequence[float],
    where: Mapping[str, Any],
) -> SweepTable:
    """The table of answers of one token. Of a question without an image, whose answers are all the
    same, confidences are NaN."""
    nothing = dict.fromkeys(CONFIDENCES, np.nan)
    confidences = {
        kind: np.array([(f.report["confidences"] or nothing)[kind] for f in found], np.float32)
        for kind in CONFIDENCES
    }
    texts = [[one.texts[alpha] for alpha in alphas] for one in found]
    return _table(questions, texts, scorer, alphas, confidences, where)


def _table(
    questions: Sequence[Question],
    texts: list[list[str]],
    scorer: Scorer,
    alphas: Sequence[float],
    confidences: dict[str, Any],
    where: Mapping[str, Any],
) -> SweepTable:
    scores = [
        [float(scorer(question, text)) for text in row]
        for question, row in zip(questions, texts, strict=True)
    ]
    return SweepTable(
        ids=[question.id for question in questions],
        alphas=np.array(alphas),
        texts=texts,
        scores=np.array(scores).reshape(len(texts), len(alphas)),
        confidences=confidences,
        **where,
    )


def _check_steered(question: Question, steered: bool, report: Mapping[str, Any]) -> None:
    if not steered:
        raise ValueError(f"question {question.id} is not steered: {report['reason']}")


def _confidences(
    questions: Sequence[Question],
    rows: Sequence[Sequence[Answer]],
    sent: Sequence[tuple[float, SteeringParams]],
) -> dict[str, Any]:
    """measure -> [Q] float32."""
    out = {kind: np.empty(len(rows), np.float32) for kind in CONFIDENCES}
    for number, (question, row) in enumerate(zip(questions, rows, strict=True)):
        for (_, steering), found in zip(sent, row, strict=True):
            if steering.mode != "adaptive":
                continue
            _check_steered(question, found.report["steered"], found.report)
            out[steering.confidence][number] = found.report["confidence"]
    return out
