"""All benchmarks by name, and the options by which a command line chooses one."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation.datasets import hub, own, vsr, whatsup
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question
from adaptvis_vllm.evaluation.datasets.scoring import SCORERS, load_scorer
from adaptvis_vllm.steering.words import nearest

NAMES = (*whatsup.PARTS, "vsr")
MAX_TOKENS = 100  # of an answer, as in the paper's code


def load(
    name: str | None, data: str | None, *, questions: str | None = None, scorer: str | None = None
) -> Benchmark:
    """A benchmark; ValueError, in one sentence, for what is unknown, missing or malformed.

    name: of NAMES, or None for a user's own data. data: folder in the layout of AdaptVis'
    code, "hf:REPOSITORY", None for the hub; own data: a file, or a folder of files. questions:
    question file of What'sUp, or a folder of them. scorer: see `scoring.load_scorer`.
    """
    if name is None:
        if data is None:
            raise ValueError(f"--dataset ({', '.join(NAMES)}) or --data is needed")
        if data.startswith(hub.PREFIX):
            raise ValueError(f"--data {data} needs --dataset, one of {', '.join(NAMES)}")
        benchmark = own.from_path(Path(data))
    elif name not in NAMES:
        raise unknown(name)
    else:
        benchmark = _known(name, data, questions)
    return benchmark if scorer is None else replace(benchmark, scorer=load_scorer(scorer))


def unknown(name: str) -> ValueError:
    """What is wrong with a name that is none of NAMES."""
    hint = nearest(name, NAMES, "")
    return ValueError(
        f"--dataset must be one of {', '.join(NAMES)}, not {name!r}{hint} (own data: --data alone)"
    )


def _known(name: str, data: str | None, questions: str | None) -> Benchmark:
    if data is None or data.startswith(hub.PREFIX):
        if name == "vsr":
            return hub.vsr_benchmark((data or hub.VSR).removeprefix(hub.PREFIX))
        repository = (data or hub.WHATSUP).removeprefix(hub.PREFIX)
        return hub.whatsup_benchmark(name, repository, questions)
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(f"--data: no such folder {folder}")
    if name == "vsr":
        return vsr.from_folder(folder)
    return whatsup.from_folder(name, folder, None if questions is None else Path(questions))


def data_options(parser: Any) -> None:
    """Add --dataset, --data, --questions, --split, --limit, --scorer, --chat, --max-tokens."""
    group = parser.add_argument_group("questions")
    add = group.add_argument
    add("--dataset", metavar="NAME", help=f"{', '.join(NAMES)}; left out: own data")
    add(
        "--data",
        metavar="DIR|FILE|hf:REPO",
        help="of --dataset: its folder, or a hub repository (the default); else a JSONL or "
        "Parquet file, or a folder of such files",
    )
    add("--questions", metavar="FILE|DIR", help="question files of What'sUp, if not in --data")
    add("--split", help="default: test for What'sUp; all for VSR and a single file")
    add("--limit", type=int, metavar="N", help="only the split's first N questions")
    add("--scorer", metavar="NAME|MODULE:FUNCTION", help=f"{', '.join(SCORERS)}, or your own")
    add("--chat", action="store_true", help="the model's chat template instead of raw prompts")
    add("--max-tokens", type=int, default=MAX_TOKENS, help=f"of an answer, default {MAX_TOKENS}")


def chosen(args: Namespace) -> Benchmark:
    """The benchmark that the options describe."""
    return load(args.dataset, args.data, questions=args.questions, scorer=args.scorer)


def selected(benchmark: Benchmark, args: Namespace) -> tuple[Question, ...]:
    """Its questions under --split and --limit."""
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be >= 1, not {args.limit}")
    if args.max_tokens < 1:
        raise ValueError(f"--max-tokens must be >= 1, not {args.max_tokens}")
    return benchmark.select(args.split)[: args.limit]
