"""The command `adaptvis calibrate`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation import answered
from adaptvis_vllm.evaluation.answer_files import write_answers
from adaptvis_vllm.evaluation.datasets import benchmarks
from adaptvis_vllm.evaluation.datasets.needed import need
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question
from adaptvis_vllm.evaluation.left_out import LeftOut, status
from adaptvis_vllm.files.lines import dumps
from adaptvis_vllm.options import check_apart, engine_options, engine_parser, make_llm
from adaptvis_vllm.steering.fields import CANDIDATES_MAX, RULES, SPANS
from adaptvis_vllm.steering.params import ScalingVis
from adaptvis_vllm.steering.preset import ranked_heads, write_preset

VALIDATION = "validation"
SWEPT_RULES = ("multiply", "add_log")  # whose alphas are factors, and 1 is no steering
CPU_BLOCK = 32  # the smallest of vLLM's CPU attention; what is shared ends at a block's end


def main(argv: Sequence[str], doc: str) -> int:
    """0 when the files are written, whatever the answer; 3 if rows of own data are left out.

    Failures are raised.
    """
    if answered.asked_for(argv):
        parser = ArgumentParser(prog="adaptvis calibrate", description=doc)
        parser.add_argument("--model", metavar="NAME", help="only named in the report")
    else:
        parser = engine_parser("adaptvis calibrate", doc)
        engine_options(parser)
    _options(parser)
    args = parser.parse_args(list(argv))
    need("jinja2", "matplotlib")
    if args.save_answers:
        answered.check_output(args.save_answers, "--save-answers")
        given = [args.data, *(args.answers or ()), *(args.test_answers or ())]
        check_apart(args.save_answers, *map(Path, filter(None, given)))
    folder = args.output
    if not folder.absolute().parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"--output: {folder} must be a folder, new or not, in one that exists")
    for option in ("--heads", "--rule"):
        if getattr(args, option[2:]) and (args.answers or args.save_answers):
            raise ValueError(f"{option} is swept on an engine: files of answers do not hold it")
    if args.answers:
        from adaptvis_vllm.evaluation.calibration.from_files import calibrate_answers

        outcome = calibrate_answers(args)
    else:
        outcome = _engine(args)
    _write(folder, outcome)
    _print(folder, outcome)
    return status(outcome.errors, folder / "calibration.json")


def _engine(args: Namespace) -> Any:
    """The outcome of a sweep on an engine."""
    if args.model is None:
        raise ValueError("--model is needed")
    if args.test_answers:
        raise ValueError("--test-answers needs --answers")

    from adaptvis_vllm.evaluation.calibration.sweep import ALPHAS, check_alphas, numbers

    alphas = check_alphas(ALPHAS if args.alphas is None else numbers(args.alphas))
    variants = _variants(args)
    benchmark = benchmarks.chosen(args)
    split, tests = splits(benchmark, args.split, args.test)
    questions = _select(benchmark, args, split)
    others = {name: _select(benchmark, args, name) for name in tests}

    from adaptvis_vllm.evaluation.answers import check_images
    from adaptvis_vllm.evaluation.calibration import report
    from adaptvis_vllm.evaluation.calibration.selection import calibrate
    from adaptvis_vllm.evaluation.calibration.sweep import sweep
    from adaptvis_vllm.evaluation.calibration.transfer import transfer
    from adaptvis_vllm.evaluation.command import facts

    left_out = LeftOut(benchmark, split, *tests)
    check_images([*questions, *(q for part in others.values() for q in part)], left_out.add)
    questions = left_out.rest(questions)
    others = {name: left_out.rest(part) for name, part in others.items()}
    llm = make_llm(args, **_small_blocks(args), **_room(args, len(alphas) - 1))
    common: dict[str, Any] = {"max_tokens": args.max_tokens, "chat": args.chat, "progress": True}
    common["left_out"] = left_out
    sweeps = []
    for where in variants:
        sweeps.append(sweep(llm, questions, benchmark.scorer, alphas, **where, **common))
        questions = left_out.rest(questions)
    found = calibrate(*(one.table for one in sweeps))
    swept = replace(
        sweeps[found.variant],
        plain_tokens=sweeps[0].plain_tokens,
        all_tokens=sum(one.all_tokens for one in sweeps),
    )
    if args.save_answers:
        write_answers(args.save_answers, answered.rows_of(questions, swept.table))
    different = [c for c in found.candidates if c.family == "base" or c.params.mode != "off"]
    transfers = {
        name: transfer(llm, part, benchmark.scorer, different, **common)
        for name, part in others.items()
    }
    return report.Outcome(
        benchmark.name,
        split,
        questions,
        swept,
        found,
        transfers,
        facts(args, questions, llm),
        notes=[*left_out.notes(), *_told(variants)],
        errors=left_out.rows,
    )


def _variants(args: Namespace) -> list[dict[str, Any]]:
    """Layers or heads, span and rule of each sweep; all heads come first. ValueError for wrong
    ones."""
    rules = [rule.strip() for rule in (args.rule or RULES[0]).split(",")]
    for rule in rules:
        if rule not in SWEPT_RULES:
            raise ValueError(f"--rule must be among {', '.join(SWEPT_RULES)}, not {rule!r}")
    places: list[dict[str, Any]] = [{"layers": args.layers}]
    if args.heads:
        path, _, counts = args.heads.rpartition(":")
        if not path or not all(count.strip().isdigit() for count in counts.split(",")):
            raise ValueError(
                f"--heads must be a ranking of heads and how many of it, such as heads.json:8,16, "
                f"not {args.heads!r}"
            )
        for count in counts.split(","):
            heads = ",".join(ranked_heads(f"{path}:{count.strip()}"))
            places.append({"layers": None, "heads": heads})
    span = args.span or SPANS[0]
    found = [ScalingVis(1.0, **p, span=span, rule=r) for p in places for r in dict.fromkeys(rules)]
    return [{n: getattr(one, n) for n in ("layers", "heads", "span", "rule")} for one in found]


def _told(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(variants) == 1:
        return []
    return [
        f"{len(variants)} choices of heads and rules were swept; which of them is used was chosen "
        "with the setting, cross-validated with it. Answers and plots are those of the one shown."
    ]


def _print(folder: Path, outcome: Any) -> None:
    from adaptvis_vllm.evaluation.calibration import report

    for part in (report.validation_table(outcome), *report.transfer_tables(outcome)):
        print(part.text() + "\n")
    sentences = [
        report.cost(outcome),
        report.resolution(outcome),
        *report.ceilings(outcome),
        *(f"note: {note}" for note in outcome.notes),
        *(f"warning: {warning}" for warning in outcome.calibration.warnings),
        report.verdict(outcome),
    ]
    print("\n".join(filter(None, sentences)))
    print(f"{folder / 'preset.json'}\n{folder / 'report.html'}\n{folder / 'calibration.json'}")


def _write(folder: Path, outcome: Any) -> None:
    from dataclasses import asdict

    from adaptvis_vllm.evaluation.calibration import plots, report
    from adaptvis_vllm.evaluation.calibration.grid import best

    table = outcome.sweep.table
    drawn = plots.draw(table, best(table.scores, table.confidences, table.alphas))
    plots_folder = folder / "plots"
    plots_folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        svg = str(figure.svg).replace("currentColor", "#1c2330")
        (plots_folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    page = report.page(outcome, drawn)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    (folder / "calibration.json").write_bytes(dumps(report.as_json(outcome), indent=1) + b"\n")
    chosen = outcome.calibration.chosen
    about = {
        "benchmark": outcome.benchmark,
        "split": outcome.split,
        "model": outcome.facts["model"],
        "questions": len(outcome.sweep.table.ids),
        "accuracy": asdict(chosen.accuracy),
        "gain": asdict(chosen.gain),
        "warnings": list(outcome.calibration.warnings),
    }
    write_preset(folder / "preset.json", chosen.params, about)


def _options(parser: Any) -> None:
    from adaptvis_vllm.evaluation.calibration.sweep import ALPHAS

    add = parser.add_argument
    default = ",".join(f"{alpha:g}" for alpha in ALPHAS)
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="for all files")
    add("--alphas", metavar="LIST", help=f"1 is always among them; default {default}")
    add("--layers", help="that are steered, such as 0-31; default all")
    add(
        "--heads",
        metavar="FILE:LIST",
        help="a ranking of `diagnose` and how many of its heads, such as heads.json:8,16,32,64; "
        "each is swept beside all heads",
    )
    add(
        "--rule",
        metavar="LIST",
        help=f"{' or '.join(SWEPT_RULES)}, or both, of which each is swept",
    )
    add("--span", choices=SPANS, help=f"default {SPANS[0]}")
    add(
        "--test",
        metavar="SPLITS",
        help="to try the result on, with commas, or none; default: every other split",
    )
    add(
        answered.OPTION,
        type=Path,
        nargs="+",
        metavar="FILE",
        help="calibrate from these answers, without an engine: rows with answers under several "
        "alphas, or result files of the paper's code, one a weight",
    )
    add(
        "--test-answers",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="the same, to try the result on",
    )
    add("--save-answers", type=Path, metavar="FILE", help=f"JSONL for {answered.OPTION}")
    benchmarks.data_options(parser)


def splits(benchmark: Benchmark, split: str | None, test: str | None) -> tuple[str, list[str]]:
    """(calibrated on, tested on). split: --split; test: --test.

    Left out: validation, else all of a benchmark without splits; every split apart from it.
    ValueError for one that does not exist, and for one that shares questions with it.
    """
    if split is None:
        if benchmark.splits and VALIDATION not in benchmark.splits:
            known = ", ".join(benchmark.splits)
            raise ValueError(f"--split is needed: {benchmark.name} has {known}")
        split = VALIDATION if benchmark.splits else "all"
    benchmark.select(split)
    count = len(benchmark.questions)
    mine = set(range(count) if split == "all" else benchmark.splits[split])
    apart = [name for name, rows in benchmark.splits.items() if not mine & set(rows)]
    if test is None:
        return split, apart
    asked = [] if test == "none" else [name.strip() for name in test.split(",")]
    for name in asked:
        if name not in apart:
            raise ValueError(
                f"--test {name!r}: {benchmark.name} has no such split apart from {split}; it has "
                f"{', '.join(apart) or 'none'}"
            )
    return split, asked


def _select(benchmark: Benchmark, args: Namespace, split: str) -> tuple[Question, ...]:
    return benchmarks.selected(benchmark, Namespace(**vars(args) | {"split": split}))


def _small_blocks(args: Namespace) -> dict[str, Any]:
    """Engine options of which the prefix cache shares the most."""
    from vllm.platforms import current_platform

    if args.block_size is None and current_platform.is_cpu():
        return {"block_size": CPU_BLOCK}
    return {}


def _room(args: Namespace, count: int) -> dict[str, Any]:
    """Engine options with which answers of one token come from one request a question."""
    from adaptvis_vllm.steering.defaults import MAX_CANDIDATES, OPTION, parse, steered_config

    config = steered_config(args.additional_config, {})
    if args.max_tokens != 1 or count > CANDIDATES_MAX:
        return {}
    held = config.get(OPTION) or {}
    most = max(count, parse(held).max_candidates)
    return {"additional_config": {**config, OPTION: {**held, MAX_CANDIDATES: most}}}
