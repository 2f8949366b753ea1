"""The command `adaptvis diagnose`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptvis_vllm.diagnosis.shares import BOXES, IMAGE, MEASURES
from adaptvis_vllm.evaluation.datasets import benchmarks
from adaptvis_vllm.evaluation.datasets.needed import need
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question
from adaptvis_vllm.evaluation.datasets.scoring import check_scorer
from adaptvis_vllm.evaluation.methods import BASE, chosen_methods
from adaptvis_vllm.files.lines import dumps
from adaptvis_vllm.options import engine_options, engine_parser, make_llm, steering_options
from adaptvis_vllm.steering.defaults import MAX_MAP_BYTES, steered_config
from adaptvis_vllm.steering.params import Off, SteeringParams


def main(argv: Sequence[str], doc: str) -> int:
    """0 when the files are written; 3 if rows of own data are left out. Failures are raised."""
    parser = engine_parser("adaptvis diagnose", doc)
    engine_options(parser)
    _options(parser)
    args = parser.parse_args(list(argv))
    need("jinja2", "matplotlib")
    if args.model is None:
        raise ValueError("--model is needed")
    benchmark = benchmarks.chosen(args)
    questions = benchmarks.selected(benchmark, args)
    method, steering = chosen_steering(args, benchmark)
    Off(maps=args.map_layers)
    own = {} if args.map_bytes is None else {MAX_MAP_BYTES: args.map_bytes}
    config = steered_config(args.additional_config, own)
    split = args.split or benchmark.split
    folder = _folder(args, benchmark.name, split)

    from adaptvis_vllm.diagnosis.collect import collect
    from adaptvis_vllm.diagnosis.results import Diagnosis
    from adaptvis_vllm.evaluation.answers import check_images
    from adaptvis_vllm.evaluation.command import facts
    from adaptvis_vllm.evaluation.left_out import LeftOut, status
    from adaptvis_vllm.evaluation.results import judge

    left_out = LeftOut(benchmark, args.split)
    check_images(questions, left_out.add)
    questions = left_out.rest(questions)
    check_scorer(benchmark.scorer, questions)
    boxes, notes = boxes_of(benchmark, args.data, questions)
    measure = _measure(args.by, any(boxes))
    steerings = {BASE: Off()} | ({method: steering} if steering else {})
    llm = make_llm(args, additional_config=config)
    asked = {id(q): b for q, b in zip(questions, boxes, strict=True)}
    questions, answers, shares = collect(
        llm,
        questions,
        boxes,
        list(steerings.values()),
        left_out,
        maps=args.map_layers,
        max_tokens=args.max_tokens,
        chat=args.chat,
        progress=True,
    )
    outcomes = judge(benchmark, questions, steerings, answers)
    found = Diagnosis(
        benchmark.name,
        split,
        questions,
        [asked[id(question)] for question in questions],
        shares,
        outcomes[BASE],
        outcomes.get(method),
        measure if measure in shares.measures else IMAGE,
        facts(args, questions, llm),
        [*notes, *left_out.notes()],
        left_out.rows,
    )
    _write(folder, found)
    _print(folder, found)
    return status(left_out.rows, folder / "diagnosis.json")


def chosen_steering(args: Namespace, benchmark: Benchmark) -> tuple[str, SteeringParams | None]:
    """(method, its steering), as `adaptvis eval` takes it: of the options, else the benchmark's
    published preset; adaptive where both methods have a setting. ("", None) where none has."""
    methods = chosen_methods(Namespace(**vars(args) | {"methods": None}), benchmark)
    (*_, (method, steering)) = methods.items()
    return ("", None) if method == BASE else (method, steering)


def boxes_of(
    benchmark: Benchmark, data: str | None, questions: Sequence[Question]
) -> tuple[list[Any], list[str]]:
    """([len(questions)] `Boxes` or None, notes for the reader); ValueError for bad ones."""
    from adaptvis_vllm.diagnosis.annotated import annotated_boxes, annotations_of
    from adaptvis_vllm.diagnosis.boxes import check_inside, own_boxes

    notes = []
    path = annotations_of(benchmark.name, data)
    if path is not None:
        boxes = annotated_boxes(path, questions)
        notes.append(f"Boxes are those of {path}: all instances that bear an object's name.")
    elif benchmark.lenient:
        boxes = [own_boxes(question) for question in questions]
        check_inside(questions)
    else:
        boxes = [None for _ in questions]
    if unnamed := sum(found is not None and not found.named for found in boxes):
        notes.append(
            f"{unnamed} questions name none of their boxes: all boxes of these count as named."
        )
    return boxes, notes


def _measure(asked: str | None, boxed: bool) -> str:
    if asked is None:
        return BOXES if boxed else IMAGE
    if asked != IMAGE and not boxed:
        raise ValueError(f"--by {asked} needs boxes, and no question has any")
    return asked


def _folder(args: Namespace, name: str, split: str) -> Path:
    folder = args.output or Path(f"diagnose_{name}_{split}")
    if not folder.absolute().parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"--output: {folder} must be a folder, new or not, in one that exists")
    return folder


def _write(folder: Path, found: Any) -> None:
    import numpy as np

    from adaptvis_vllm.diagnosis.heads import ranking
    from adaptvis_vllm.diagnosis.report import page
    from adaptvis_vllm.diagnosis.results import as_arrays, as_csv, as_json

    folder.mkdir(exist_ok=True)
    about = {
        "benchmark": found.benchmark,
        "split": found.split,
        "model": found.facts["model"],
        "questions": len(found.ranked.rows),
        "right": int(found.ranked.right.sum()),
    }
    html = page(found)
    (folder / "report.html").write_text(html, encoding="utf-8", errors="backslashreplace")
    (folder / "diagnosis.json").write_bytes(dumps(as_json(found), indent=1) + b"\n")
    (folder / "heads.json").write_bytes(dumps(ranking(found.ranked, about), indent=1) + b"\n")
    (folder / "heads.csv").write_text(as_csv(found), encoding="utf-8")
    np.savez_compressed(folder / "shares.npz", **as_arrays(found))


def _print(folder: Path, found: Any) -> None:
    from adaptvis_vllm.diagnosis import report, tables

    count, model = len(found.questions), found.facts["model"]
    print(f"{found.benchmark}, {found.split}, {count} questions, {model}")
    shown = [tables.measure_table(found), tables.layer_table(found), tables.head_table(found)]
    changed = tables.change_table(found)
    for table in [*shown, *([changed] if changed is not None else [])]:
        print(table.text() + "\n")
    sentences = [*tables.verdict(found), *(f"note: {note}" for note in found.notes)]
    sentences += [f"warning: {warning}" for warning in report.warnings(found)]
    print("\n".join(sentences))
    for name in ("report.html", "diagnosis.json", "heads.json", "heads.csv", "shares.npz"):
        print(folder / name)


def _options(parser: Any) -> None:
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FOLDER", help="default diagnose_NAME_SPLIT")
    add(
        "--map-layers",
        default="all",
        metavar="LAYERS",
        help="that are looked at, such as 0-31; default all",
    )
    text = "largest maps of a question; default 67108864"
    add("--max-map-bytes", dest="map_bytes", type=int, metavar="N", help=text)
    add(
        "--by",
        choices=MEASURES,
        help="share by whose AUROC heads are ranked; default boxes, or image where there are none",
    )
    benchmarks.data_options(parser)
    steering_options(
        parser, "steering; default: the benchmark's published preset, else none", mode=None
    )
