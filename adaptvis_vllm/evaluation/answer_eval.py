"""`adaptvis eval` on files of answers, without an engine."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.answer_files import Answers, check_same, read_answers
from adaptvis_vllm.evaluation.answered import OPTION, benchmark_of, check_options, table_of
from adaptvis_vllm.evaluation.answers import Answer
from adaptvis_vllm.evaluation.datasets.question import Benchmark
from adaptvis_vllm.evaluation.methods import (
    ADAPTIVE,
    BASE,
    METHODS,
    ORACLE,
    SCALING,
    TITLES,
    chosen_methods,
)
from adaptvis_vllm.evaluation.result_files import origin
from adaptvis_vllm.evaluation.results import Evaluation, Outcome, score
from adaptvis_vllm.evaluation.table import PLAIN, SweepTable
from adaptvis_vllm.options import given_steering
from adaptvis_vllm.steering.params import Off, ScalingVis, SteeringParams
from adaptvis_vllm.steering.report import MODE_OFF, Report


@dataclass(frozen=True)
class _Line:
    """One method of one name. answers: [Q]. The rest as in `Outcome`."""

    name: str
    key: str
    title: str
    method: str
    steering: SteeringParams | None
    answers: Sequence[Answer]


def evaluate_answers(args: Namespace) -> Evaluation:
    """What the command's options ask for; ValueError in one sentence for what cannot be.

    A file's answers under alpha 1 are the base of its other lines; where it has none, those of
    the first file that has, else the first line.
    """
    check_options(args)
    files = {name: read_answers(paths) for name, paths in _named(args.answers).items()}
    first, *others = files.values()
    for other in others:
        check_same(first, other)
        if first.dataset and other.dataset and first.dataset != other.dataset:
            raise ValueError(
                f"{first.name} is about {first.dataset}, but {other.name} about {other.dataset}"
            )
    known = next((a.dataset for a in files.values() if a.dataset), "")
    benchmark = benchmark_of(replace(first, dataset=known), args.dataset, args.scorer)
    notes: list[str] = []
    lines = [
        line
        for name, answers in files.items()
        for line in _lines(args, benchmark, name, answers, not others, notes)
    ]
    facts = {
        "model": args.model or "not named",
        "questions": len(first.questions),
        "answers": "; ".join(f"{name}: {answers.name}" for name, answers in files.items()),
        "scorer": args.scorer or "the benchmark's",
        "adaptvis-vllm": version("adaptvis-vllm"),
    }
    split = next((a.split for a in files.values() if a.split), benchmark.split)
    outcomes = _outcomes(benchmark, lines)
    return Evaluation(benchmark, split, benchmark.questions, outcomes, facts, tuple(notes))


def _named(given: Sequence[str]) -> Mapping[str, list[Path]]:
    out: dict[str, list[Path]] = {}
    for word in given:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{OPTION} takes NAME=FILE, not {word!r}")
        out.setdefault(name, []).append(Path(path))
    return out


def _lines(
    args: Namespace,
    benchmark: Benchmark,
    name: str,
    answers: Answers,
    alone: bool,
    notes: list[str],
) -> Iterator[_Line]:
    """alone: no other name is there, so the methods' own names do. notes: grows."""
    columns = dict(answers.texts)
    if len(answers.alphas) > 1 and PLAIN in columns:
        notes += answers.notes
        table = table_of(benchmark, answers)
        for method, steering, chosen in _methods(args, benchmark, table, name, notes):
            key, title = method, TITLES[method]
            if not alone:
                key, title = f"{name} {key}", f"{name} {title}"
            found = _given(table, chosen, steering)
            yield _Line(name, key, title, method, steering, found)
        columns = {alpha: texts for alpha, texts in columns.items() if alpha is None}
    for alpha, texts in columns.items():
        steering = None if alpha is None else Off() if alpha == PLAIN else ScalingVis(alpha)
        key = name if alpha is None or len(columns) == 1 else f"{name} alpha {alpha:g}"
        report = _report(steering, alpha, None)
        found = [Answer(text, (), report) for text in texts]
        yield _Line(name, key, key, _method(name, answers, alpha), steering, found)


def _methods(
    args: Namespace, benchmark: Benchmark, table: SweepTable, name: str, notes: list[str]
) -> Iterator[tuple[str, SteeringParams | None, NDArray[np.intp]]]:
    """(method, steering, [Q] indices of alphas) of what a table can tell, and of the oracle.

    A published setting that it cannot tell becomes a note; one that was asked for a ValueError.
    """
    asked = bool(args.methods or given_steering(args))
    for method, steering in chosen_methods(args, benchmark).items():
        if not asked and steering.mode != "off":
            steering = replace(steering, layers=table.layers, span=table.span)
        try:
            yield method, steering, table.chosen(steering)
        except ValueError as error:
            if asked:
                raise ValueError(f"{TITLES[method]} of {name}: {error}") from None
            notes.append(f"{TITLES[method]} of {name} is left out: {error}.")
    yield ORACLE, None, table.scores.argmax(axis=1)


def _method(name: str, answers: Answers, alpha: float | None) -> str:
    """What published figures stand beside answers under one alpha, or of an adaptive run."""
    if alpha is not None:
        return BASE if alpha == PLAIN else SCALING
    if name in METHODS:
        return name
    adaptive = any(origin(path).method.startswith("adapt_vis") for path in answers.files)
    return ADAPTIVE if adaptive else ""


def _given(
    table: SweepTable, chosen: NDArray[np.intp], steering: SteeringParams | None
) -> list[Answer]:
    measure = steering.confidence if steering and steering.mode == "adaptive" else None
    return [
        Answer(
            table.texts[number][column],
            (),
            _report(
                steering,
                float(table.alphas[column]),
                None if measure is None else float(table.confidences[measure][number]),
            ),
        )
        for number, column in enumerate(chosen.tolist())
    ]


def _report(
    steering: SteeringParams | None, alpha: float | None, confidence: float | None
) -> dict[str, Any]:
    """As an engine would report it; of answers of no known setting, that it is not known."""
    if steering is not None and steering.mode == "off":
        return Report("off", reason=MODE_OFF).as_dict()
    if alpha is None:
        return Report("", reason="not known").as_dict()
    return Report(steering.mode if steering else ORACLE, confidence, alpha, True).as_dict()


def _outcomes(benchmark: Benchmark, lines: Sequence[_Line]) -> dict[str, Outcome]:
    """key -> outcome, in order."""

    def scored(line: _Line, base: Outcome | None) -> Outcome:
        return score(
            benchmark,
            benchmark.questions,
            line.answers,
            method=line.method,
            steering=line.steering,
            base=base,
            title=line.title,
        )

    plain = [line for line in lines if line.method == BASE] or [lines[0]]
    bases = {line.key: scored(line, None) for line in plain}
    by_name = {line.name: bases[line.key] for line in plain}
    anyone = bases[plain[0].key]
    return {
        line.key: bases.get(line.key) or scored(line, by_name.get(line.name, anyone))
        for line in lines
    }
