"""What an evaluation found, as figures, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.answers import Answer
from adaptvis_vllm.evaluation.methods import BASE, TITLES
from adaptvis_vllm.evaluation.page import Table
from adaptvis_vllm.evaluation.question import Benchmark, Question
from adaptvis_vllm.evaluation.scoring import by_group
from adaptvis_vllm.evaluation.stats import Interval, interval, paired
from adaptvis_vllm.params import SteeringParams


@dataclass(frozen=True)
class Outcome:
    """One method on the N questions.

    right: [N] bool. gain: accuracy minus the base's, paired; None for the base itself.
    mended, broken: questions that only this method, or only the base, answers rightly.
    figures: of the benchmark's metrics.
    """

    method: str
    steering: SteeringParams
    answers: Sequence[Answer]
    right: NDArray[np.bool_]
    accuracy: Interval
    gain: Interval | None
    mended: int
    broken: int
    figures: Mapping[str, float | None]

    @property
    def title(self) -> str:
        return TITLES[self.method]

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
    """questions: the N that were asked. facts: model, versions and the like."""

    benchmark: Benchmark
    split: str
    questions: Sequence[Question]
    outcomes: Mapping[str, Outcome]
    facts: Mapping[str, Any]


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
        right = np.array(
            [bool(benchmark.scorer(q, a.text)) for q, a in zip(questions, own, strict=True)]
        )
        base = right if method == BASE else outcomes[BASE].right
        figures = benchmark.metrics(questions, right.tolist()) if benchmark.metrics else {}
        outcomes[method] = Outcome(
            method=method,
            steering=steering,
            answers=own,
            right=right,
            accuracy=interval(right),
            gain=None if method == BASE else paired(base, right),
            mended=int((right & ~base).sum()),
            broken=int((base & ~right).sum()),
            figures=figures,
        )
    return outcomes


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
    for field in evaluation.benchmark.groups:
        by = {
            o.title: by_group(evaluation.questions, o.right.tolist(), field)
            for o in evaluation.outcomes.values()
        }
        first = next(iter(by.values()))
        if len(first) > 1:
            rows = [
                [name, str(count), *(percent(groups[name][0]) for groups in by.values())]
                for name, (_, count) in first.items()
            ]
            tables.append(Table([field, "questions", *by], rows, title=f"By {field}"))
    return tables


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """All of it, every answer included; accuracies and figures in [0, 1]."""
    benchmark = evaluation.benchmark
    methods = {
        name: {
            "steering": asdict(o.steering),
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
        "methods": methods,
        "published": [asdict(p) for p in benchmark.published],
        "answers": answers,
    }


def setting(params: SteeringParams) -> str:
    """The numbers of a setting in few characters."""
    if params.mode == "off":
        return ""
    if params.mode == "scaling":
        return f"alpha {params.alpha:g}"
    return f"{params.alpha_low:g} / {params.alpha_high:g} at {params.threshold:g}"


def percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"


def with_interval(found: Interval, sign: str = "") -> str:
    low, high = percent(found.low, sign), percent(found.high, sign)
    return f"{percent(found.value, sign)} [{low}, {high}]"
