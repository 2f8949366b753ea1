"""Benchmarks and tables from files of answers, in place of an engine's."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adaptvis_vllm.evaluation.answer_files import Answers
from adaptvis_vllm.evaluation.datasets import benchmarks, vsr, whatsup
from adaptvis_vllm.evaluation.datasets.own import groups_of
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question, chance_of
from adaptvis_vllm.evaluation.datasets.scoring import check_scorer, contains, load_scorer
from adaptvis_vllm.evaluation.table import PLAIN, SweepTable

OPTION = "--answers"
# What says which questions are asked, or how: a file of answers says it all.
_ENGINE_ONLY = ("data", "questions", "split", "limit", "chat")


def asked_for(argv: Sequence[str]) -> bool:
    """Whether a command line is about answers from files: then no engine is needed."""
    return any(word.partition("=")[0] == OPTION for word in argv)


def check_options(args: Namespace, *more: str) -> None:
    """ValueError for options that do not go with --answers. more: names of further ones."""
    given = [name for name in (*_ENGINE_ONLY, *more) if getattr(args, name, None)]
    for name in given + (["max_tokens"] if args.max_tokens != benchmarks.MAX_TOKENS else []):
        option = "--" + name.replace("_", "-")
        raise ValueError(
            f"{OPTION} brings its own questions and answers; {option} does not go with it"
        )


def benchmark_of(answers: Answers, dataset: str | None, scorer: str | None) -> Benchmark:
    """The benchmark that the answers are about: its scorer, metrics and published figures.

    dataset: a name, else what the files' names say, else the questions are own data. scorer: see
    `scoring.load_scorer`. ValueError for what does not fit.
    """
    if dataset is not None and dataset not in benchmarks.NAMES:
        raise benchmarks.unknown(dataset)
    if dataset and answers.dataset and dataset != answers.dataset:
        raise ValueError(f"{answers.name} is about {answers.dataset}, not {dataset}")
    name = dataset or answers.dataset
    if name == "vsr":
        out = vsr.benchmark_of(answers.questions)
    elif name:
        part = whatsup.PARTS[name]
        questions = tuple(whatsup.without_pictures(part, q) for q in answers.questions)
        out = whatsup.benchmark_of(part, questions)
    else:
        out = _own(answers)
    out = replace(out, splits={}, split=answers.split or "answers")
    if scorer is not None:
        out = replace(out, scorer=load_scorer(scorer))
    check_scorer(out.scorer, out.questions)
    return out


def table_of(benchmark: Benchmark, answers: Answers) -> SweepTable:
    """Every answer scored. ValueError where those under alpha 1 are not among them."""
    if PLAIN not in answers.texts:
        known = ", ".join(f"{alpha:g}" for alpha in answers.alphas) or "none that is known"
        hint = ""
        if None in answers.texts:
            hint = (
                "; a text alone has the alpha that the file's name gives "
                "(results.._scaling_vis_0.8_..json, results.._base_..json), and an adaptive run's "
                "has none"
            )
        raise ValueError(
            f"{answers.name} holds no answers under alpha 1, the unsteered ones; its alphas are "
            f"{known}{hint}"
        )
    columns = [answers.texts[alpha] for alpha in answers.alphas]
    texts = [list(row) for row in zip(*columns, strict=True)]
    scores = [
        [float(benchmark.scorer(question, text)) for text in row]
        for question, row in zip(benchmark.questions, texts, strict=True)
    ]
    return SweepTable(
        ids=[question.id for question in benchmark.questions],
        alphas=np.array(answers.alphas),
        texts=texts,
        scores=np.array(scores),
        confidences=answers.confidences,
        layers=answers.layers,
        span=answers.span or "embeddings",
    )


def rows_of(questions: Sequence[Question], table: SweepTable) -> list[dict[str, Any]]:
    """A table as rows of `answer_files`: reading them gives the same table."""
    steering = {} if table.layers is None else {"layers": table.layers}
    if table.span != "embeddings":
        steering["span"] = table.span
    rows = []
    for number, question in enumerate(questions):
        row: dict[str, Any] = {"id": question.id, "question": question.question}
        if question.prompt is not None:
            row["prompt"] = question.prompt
        row["answer"] = question.answers if len(question.answers) > 1 else question.answers[0]
        if question.choices:
            row["choices"] = list(question.choices)
        row["answers"] = {
            str(float(alpha)): text
            for alpha, text in zip(table.alphas, table.texts[number], strict=True)
        }
        row["confidence"] = {k: float(table.confidences[k][number]) for k in table.measures}
        known = {name: value for name, value in question.meta.items() if _is_json(value)}
        rows.append(row | steering | {n: v for n, v in known.items() if n not in row})
    return rows


def check_output(path: Path, option: str) -> None:
    """ValueError unless answers can be written there."""
    if path.suffix != ".jsonl":
        raise ValueError(f"{option}: {path} must end in .jsonl")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{option}: no such folder {path.parent}")


def _own(answers: Answers) -> Benchmark:
    return Benchmark(
        name=answers.files[0].stem,
        questions=answers.questions,
        scorer=contains,
        chance=chance_of(answers.questions),
        groups=groups_of(list(answers.questions)),
    )


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float | bool)
