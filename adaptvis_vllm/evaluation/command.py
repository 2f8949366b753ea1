"""The command `adaptvis eval`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation import answered
from adaptvis_vllm.evaluation.datasets import benchmarks
from adaptvis_vllm.evaluation.datasets.needed import need
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.datasets.scoring import check_scorer
from adaptvis_vllm.evaluation.methods import METHODS, chosen_methods
from adaptvis_vllm.files.lines import dumps
from adaptvis_vllm.options import (
    check_apart,
    engine_options,
    engine_parser,
    make_llm,
    steering_options,
)


def main(argv: Sequence[str], doc: str) -> int:
    """0: every question is answered; 3: some rows of own data are left out. Failures are raised."""
    if answered.asked_for(argv):
        parser = ArgumentParser(prog="adaptvis eval", description=doc)
        parser.add_argument("--model", metavar="NAME", help="only named in the report")
    else:
        parser = engine_parser("adaptvis eval", doc)
        engine_options(parser)
    _options(parser)
    args = parser.parse_args(list(argv))
    need("jinja2", "matplotlib")
    if args.answers:
        from adaptvis_vllm.evaluation.answer_eval import evaluate_answers

        evaluation = evaluate_answers(args)
        _write(_output(args, evaluation.benchmark.name, evaluation.split), evaluation)
        return 0
    if args.model is None:
        raise ValueError("--model is needed")
    benchmark = benchmarks.chosen(args)
    questions = benchmarks.selected(benchmark, args)
    methods = chosen_methods(args, benchmark)
    split = args.split or benchmark.split
    output = _output(args, benchmark.name, split)

    from adaptvis_vllm.evaluation.answers import answer, check_images
    from adaptvis_vllm.evaluation.left_out import LeftOut, status
    from adaptvis_vllm.evaluation.results import Evaluation, judge

    left_out = LeftOut(benchmark, args.split)
    check_images(questions, left_out.add)
    questions = left_out.rest(questions)
    check_scorer(benchmark.scorer, questions)
    llm = make_llm(args)
    answers = answer(
        llm,
        questions,
        list(methods.values()),
        max_tokens=args.max_tokens,
        chat=args.chat,
        progress=True,
        refuse=left_out.add,
    )
    questions, answers = left_out.answered(questions, answers)
    outcomes = judge(benchmark, questions, methods, answers)
    about = facts(args, questions, llm)
    evaluation = Evaluation(
        benchmark, split, questions, outcomes, about, left_out.notes(), left_out.rows
    )
    _write(output, evaluation)
    return status(left_out.rows, output)


def _output(args: Namespace, name: str, split: str) -> Path:
    output = args.output or Path(f"eval_{name}_{split}.json")
    if not output.parent.is_dir():
        raise ValueError(f"--output: no such folder {output.parent}")
    if output.suffix == ".html":
        raise ValueError(f"--output: {output} names the JSON file; the page is put beside it")
    read = [word.partition("=")[2] for word in args.answers or ()]
    check_apart(output, *map(Path, [*read, *filter(None, [args.data, args.questions])]))
    return output


def _write(output: Path, evaluation: Any) -> None:
    from adaptvis_vllm.evaluation.report import page
    from adaptvis_vllm.evaluation.results import as_json, summary_table

    output.write_bytes(dumps(as_json(evaluation), indent=1) + b"\n")
    html = output.with_suffix(".html")
    html.write_text(page(evaluation), encoding="utf-8", errors="backslashreplace")
    facts, name = evaluation.facts, evaluation.benchmark.name
    of = facts.get("answers", facts["model"])
    print(f"{name}, {evaluation.split}, {facts['questions']} questions, {of}")
    print(summary_table(evaluation).text())
    print("".join(f"note: {note}\n" for note in evaluation.notes), end="")
    print(f"{output}\n{html}")


def _options(parser: Any) -> None:
    parser.add_argument("-o", "--output", type=Path, help="JSON; the HTML report is put beside it")
    parser.add_argument(
        "--methods", metavar="LIST", help=f"of {','.join(METHODS)}; default: all with a setting"
    )
    parser.add_argument(
        answered.OPTION,
        nargs="+",
        metavar="NAME=FILE",
        help="score these answers, without an engine; several files of one NAME are joined",
    )
    benchmarks.data_options(parser)
    steering_options(parser, "steering; default: the benchmark's published preset", mode=None)


def facts(args: Namespace, questions: Sequence[Question], llm: Any) -> dict[str, Any]:
    """What a report says of its run: model, questions, prompts, versions."""
    from importlib.metadata import version

    import vllm

    raw = not args.chat and any(q.prompt is not None for q in questions)
    dtype = llm.llm_engine.vllm_config.model_config.dtype
    return {
        "model": str(args.model),
        "questions": len(questions),
        "data": args.data or "Hugging Face hub",
        "prompts": "raw, as given" if raw else "chat template",
        "scorer": args.scorer or "the benchmark's",
        "tokens an answer": f"at most {args.max_tokens}",
        "dtype": str(dtype).removeprefix("torch."),
        "vllm": vllm.__version__,
        "adaptvis-vllm": version("adaptvis-vllm"),
    }
