"""Calibration from files of answers, without an engine."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from adaptvis_vllm.evaluation.answer_files import Answers, read_answers, write_answers
from adaptvis_vllm.evaluation.answered import benchmark_of, check_options, rows_of, table_of
from adaptvis_vllm.evaluation.calibration.report import Outcome
from adaptvis_vllm.evaluation.calibration.selection import calibrate
from adaptvis_vllm.evaluation.calibration.sweep import Sweep, check_alphas, numbers
from adaptvis_vllm.evaluation.calibration.transfer import from_table
from adaptvis_vllm.steering.fields import CONFIDENCES, check_field


def calibrate_answers(args: Namespace) -> Outcome:
    """What the command's options ask for; ValueError in one sentence for what cannot be."""
    check_options(args, "test")
    mine = _steered(_picked(read_answers(args.answers), args.alphas), args)
    notes = list(mine.notes)
    test = None
    if args.test_answers:
        test = _steered(read_answers(args.test_answers), args)
        _check_apart(mine, test)
        notes += test.notes
        mine, test, left_out = _common(mine, test)
        notes += left_out
    dataset = args.dataset or mine.dataset or (test.dataset if test else "") or None
    benchmark = benchmark_of(mine, dataset, args.scorer)
    table = table_of(benchmark, mine)
    check_alphas(list(mine.alphas))
    for one in filter(None, (mine, test)):
        if None in one.texts:
            notes.append(f"The answers of no single alpha in {one.name} are left out.")
    tests = {}
    if test is not None:
        name = test.split or test.name
        tests[name] = table_of(benchmark_of(test, dataset, args.scorer), test)
    if not table.measures:
        notes.append("No confidence is known, so no AdaptVis setting was looked for.")
    if args.save_answers:
        write_answers(args.save_answers, rows_of(benchmark.questions, table))
    found = calibrate(table)
    if found.chosen.family == "adaptive":
        notes.append(
            "The threshold is for confidences that are measured as the file's; an engine's are "
            "those of the first token over the whole vocabulary."
        )
    different = [c for c in found.candidates if c.family == "base" or c.params.mode != "off"]
    return Outcome(
        benchmark.name,
        mine.split or mine.name,
        benchmark.questions,
        Sweep(table),
        found,
        {name: from_table(other, different) for name, other in tests.items()},
        _facts(args, mine, test),
        tests,
        tuple(dict.fromkeys(notes)),
    )


def _picked(answers: Answers, alphas: str | None) -> Answers:
    """Only the alphas that --alphas names, and 1."""
    if alphas is None:
        return answers
    wanted = check_alphas(numbers(alphas))
    for alpha in wanted:
        if alpha not in answers.texts:
            known = ", ".join(f"{a:g}" for a in answers.alphas)
            raise ValueError(f"--alphas: {answers.name} has no alpha {alpha:g}; it has {known}")
    return replace(answers, texts={alpha: answers.texts[alpha] for alpha in wanted})


def _steered(answers: Answers, args: Namespace) -> Answers:
    """With the layers and span of the options where the file says nothing of them."""
    for name in ("layers", "span"):
        given = getattr(args, name)
        if given is None:
            continue
        given = check_field(name, given, "--")
        held = getattr(answers, name)
        if held is not None and held != given:
            raise ValueError(f"--{name} {given}: the answers of {answers.name} have {held}")
        answers = replace(answers, **{name: given})
    return answers


def _check_apart(mine: Answers, test: Answers) -> None:
    """ValueError for questions of the one that are known to be in the other, and for answers
    that were steered elsewhere."""
    for name in ("layers", "span"):
        one, other = getattr(mine, name), getattr(test, name)
        if one != other:
            raise ValueError(f"{mine.name} has the {name} {one}, but {test.name} {other}")
    same = {path.resolve() for path in mine.files} & {path.resolve() for path in test.files}
    if same or (mine.split and mine.split == test.split):
        raise ValueError(f"--test-answers: {test.name} is about the questions of --answers")
    if mine.own_ids and test.own_ids:
        held = {(q.id, q.question, q.answers) for q in mine.questions}
        for question in test.questions:
            if (question.id, question.question, question.answers) in held:
                raise ValueError(
                    f"--test-answers: {test.name} holds the question {question.id}, which "
                    f"{mine.name} holds too"
                )


def _common(mine: Answers, test: Answers) -> tuple[Answers, Answers, list[str]]:
    """Both with the alphas and measures that both have, and what was left out."""
    notes = []
    for one, other in ((mine, test), (test, mine)):
        alphas = [alpha for alpha in one.alphas if alpha not in other.texts]
        if alphas:
            notes.append(_left_out("alpha", [f"{a:g}" for a in alphas], one))
        measures = [k for k in CONFIDENCES if k in one.confidences and k not in other.confidences]
        if measures:
            notes.append(_left_out("confidence", measures, one))
    return _restricted(mine, test), _restricted(test, mine), notes


def _left_out(what: str, names: Iterable[str], where: Answers) -> str:
    return f"{what} {', '.join(names)}: left out, only {where.name} has it."


def _restricted(one: Answers, other: Answers) -> Answers:
    texts = {a: t for a, t in one.texts.items() if a is None or a in other.texts}
    known = {k: v for k, v in one.confidences.items() if k in other.confidences}
    return replace(one, texts=texts, confidences=known)


def _facts(args: Namespace, mine: Answers, test: Answers | None) -> dict[str, Any]:
    facts = {
        "model": args.model or "not named",
        "questions": len(mine.questions),
        "answers": mine.name,
        "scorer": args.scorer or "the benchmark's",
        "adaptvis-vllm": version("adaptvis-vllm"),
    }
    return facts if test is None else facts | {"test answers": test.name}
