"""What an evaluation found, as figures, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation import breakdown
from adaptvis_vllm.evaluation.answers import Answer
from adaptvis_vllm.evaluation.breakdown import Part
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question, Refused
from adaptvis_vllm.evaluation.datasets.scoring import by_group
from adaptvis_vllm.evaluation.html.page import Table
from adaptvis_vllm.evaluation.methods import BASE, TITLES
from adaptvis_vllm.evaluation.stats import Interval, interval, paired
from adaptvis_vllm.steering.params import SteeringParams


@dataclass(frozen=True)
class Outcome:
    """One method on the N questions.

    method: of METHODS, `ORACLE`, or "" where a file's answers are of none that is known; so is
    steering None. base: what it is compared with; None for a base itself.
    right: [N] bool. gain: accuracy minus the base's, paired.
    mended, broken: questions that only this method, or only the base, answers rightly.
    figures: of the benchmark's metrics.
    """

    title: str
    method: str
    steering: SteeringParams | None
    base: Outcome | None = field(repr=False, compare=False)
    answers: Sequence[Answer]
    right: NDArray[np.bool_]
    accuracy: Interval
    gain: Interval | None
    mended: int
    broken: int
    figures: Mapping[str, float | None]

    @property
    def reports(self) -> dict[str, int]:
        """How many answers were steered with which alpha, and why others were not."""
        return dict(
            Counter(
                f"alpha {a.report['alpha']:g}" if a.report["steered"] else a.report["reason"]
                for a in self.answers
            )
        )


@dataclass(frozen=True)
class Evaluation:
    """questions: the N that were answered. facts: model, versions and the like. notes: sentences
    about what was left out. errors: rows that were."""

    benchmark: Benchmark
    split: str
    questions: Sequence[Question]
    outcomes: Mapping[str, Outcome]
    facts: Mapping[str, Any]
    notes: Sequence[str] = ()
    errors: Sequence[Refused] = ()


def judge(
    benchmark: Benchmark,
    questions: Sequence[Question],
    steerings: Mapping[str, SteeringParams],
    answers: Sequence[Sequence[Answer]],
) -> dict[str, Outcome]:
    """answers: [N][methods], in the order of `steerings`, whose first is the base."""
    outcomes: dict[str, Outcome] = {}
    for column, (method, steering) in enumerate(steerings.items()):
        own = [row[column] for row in answers]
        base = None if method == BASE else outcomes[BASE]
        outcomes[method] = score(
            benchmark, questions, own, method=method, steering=steering, base=base
        )
    return outcomes


def score(
    benchmark: Benchmark,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    *,
    method: str,
    steering: SteeringParams | None,
    base: Outcome | None,
    title: str = "",
) -> Outcome:
    """[N] answers to the [N] questions. base: what they are compared with. The rest as there."""
    right = np.array(
        [bool(benchmark.scorer(q, a.text)) for q, a in zip(questions, answers, strict=True)]
    )
    before = right if base is None else base.right
    return Outcome(
        title=title or TITLES[method],
        method=method,
        steering=steering,
        base=base,
        answers=answers,
        right=right,
        accuracy=interval(right),
        gain=None if base is None else paired(before, right),
        mended=int((right & ~before).sum()),
        broken=int((before & ~right).sum()),
        figures=benchmark.metrics(questions, right.tolist()) if benchmark.metrics else {},
    )


def summary_table(evaluation: Evaluation) -> Table:
    """A line per method: accuracy and gain with intervals, metrics, published figures."""
    outcomes = list(evaluation.outcomes.values())
    names = list(outcomes[0].figures)
    known = evaluation.benchmark.published
    columns = [
        (p, figure)
        for p in dict.fromkeys(k.model for k in known)
        for figure in dict.fromkeys(k.figure for k in known)
    ]
    heads = [f"{model}" + (f" {f}" if f != "accuracy" else "") for model, f in columns]
    rows = []
    for outcome in outcomes:
        row = [outcome.title, setting(outcome.steering), with_interval(outcome.accuracy)]
        row += [with_interval(outcome.gain, sign="+") if outcome.gain else ""]
        row += [f"+{outcome.mended} / -{outcome.broken}" if outcome.gain else ""]
        row += [percent(outcome.figures[name]) for name in names]
        for model, figure in columns:
            found = [
                k.value
                for k in known
                if (k.model, k.figure, k.method) == (model, figure, outcome.method)
            ]
            row.append(f"{found[0]:.1f}" if found else "")
        rows.append(row)
    note = "Percent; in brackets 95% bootstrap intervals, that of the gain paired by question."
    if columns:
        note += " The columns named after a model are published."
    return Table(
        ["method", "setting", "accuracy", "gain", "mended / broken", *names, *heads],
        rows,
        note=note,
    )


def group_tables(evaluation: Evaluation) -> list[Table]:
    """Accuracy by each of the benchmark's groups, a column per method."""
    tables = []
    for name in evaluation.benchmark.groups:
        by = {
            o.title: by_group(evaluation.questions, o.right.tolist(), name)
            for o in evaluation.outcomes.values()
        }
        first = next(iter(by.values()))
        if len(first) > 1:
            rows = [
                [value, str(count), *(percent(groups[value][0]) for groups in by.values())]
                for value, (_, count) in first.items()
            ]
            tables.append(Table([name, "questions", *by], rows, title=f"By {name}"))
    return tables + [breakdown.table(found, what) for what, found in parts(evaluation).items()]


def parts(evaluation: Evaluation) -> dict[str, list[Part]]:
    """By right answer, unless one of the benchmark's groups is that, and by confidence."""
    columns = {o.title: o.right for o in evaluation.outcomes.values()}
    questions, out = evaluation.questions, {}
    right = [q.answers[0].lower() for q in questions]
    if not any([q.meta.get(g) for q in questions] == right for g in evaluation.benchmark.groups):
        out["answer"] = breakdown.by_answer(questions, columns)
    for outcome in evaluation.outcomes.values():
        if outcome.steering is not None and outcome.steering.mode == "adaptive":
            values = np.array([a.report["confidence"] for a in outcome.answers], dtype=float)
            out[outcome.steering.confidence] = breakdown.by_confidence(values, columns)
            break
    return {what: found for what, found in out.items() if found}


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """All of it, every answer included; accuracies and figures in [0, 1]."""
    benchmark = evaluation.benchmark
    methods = {
        name: {
            "steering": None if o.steering is None else asdict(o.steering),
            "over": None if o.base is None else o.base.title,
            "accuracy": asdict(o.accuracy),
            "gain": None if o.gain is None else asdict(o.gain),
            "mended": o.mended,
            "broken": o.broken,
            "figures": dict(o.figures),
            "by": {
                field: {
                    value: {"accuracy": accuracy, "questions": count}
                    for value, (accuracy, count) in by_group(
                        evaluation.questions, o.right.tolist(), field
                    ).items()
                }
                for field in benchmark.groups
            },
            "steered": o.reports,
        }
        for name, o in evaluation.outcomes.items()
    }
    answers = [
        {
            "id": question.id,
            "answer": list(question.answers),
            **{
                name: {
                    "text": o.answers[number].text,
                    "right": bool(o.right[number]),
                    "confidence": o.answers[number].report["confidence"],
                    "alpha": o.answers[number].report["alpha"],
                }
                for name, o in evaluation.outcomes.items()
            },
        }
        for number, question in enumerate(evaluation.questions)
    ]
    return {
        "benchmark": benchmark.name,
        "split": evaluation.split,
        "questions": len(evaluation.questions),
        "chance": benchmark.chance,
        "facts": dict(evaluation.facts),
        "notes": list(evaluation.notes),
        "methods": methods,
        "parts": {what: [p.as_json() for p in found] for what, found in parts(evaluation).items()},
        "published": [asdict(p) for p in benchmark.published],
        "answers": answers,
        "errors": [{"id": row.id, "error": row.error} for row in evaluation.errors],
    }


def setting(params: SteeringParams | None) -> str:
    """The numbers of a setting in few characters."""
    if params is None or params.mode == "off":
        return ""
    if params.mode == "scaling":
        return f"alpha {params.alpha:g}"
    return f"{params.alpha_low:g} / {params.alpha_high:g} at {params.threshold:g}"


def percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"


def with_interval(found: Interval, sign: str = "") -> str:
    low, high = percent(found.low, sign), percent(found.high, sign)
    return f"{percent(found.value, sign)} [{low}, {high}]"
