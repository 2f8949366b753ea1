"""The command `adaptvis batch`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptvis_vllm.engine.compilation import SWITCHES, settle
from adaptvis_vllm.options import (
    engine_options,
    engine_parser,
    given_steering,
    map_options,
    mapped_config,
    steering_options,
)


def main(argv: Sequence[str], doc: str) -> int:
    """0: all rows answered; 3: some are error rows. Failures are raised."""
    from vllm.engine.arg_utils import EngineArgs

    parser = engine_parser("adaptvis batch", doc)
    _options(parser)
    engine_options(parser)
    args = parser.parse_args(list(argv))
    settings = _settings(args, EngineArgs)

    from adaptvis_vllm.batch.driver import run
    from adaptvis_vllm.batch.folder import sentences
    from adaptvis_vllm.batch.job import job_folder
    from adaptvis_vllm.batch.progress import Progress
    from adaptvis_vllm.batch.summary import text

    def progress(job: Any) -> Progress:
        if job.source.unused:
            print(f"columns not used: {', '.join(job.source.unused)}", file=sys.stderr)
        for sentence in sentences(job.source.skipped):
            print(sentence, file=sys.stderr)
        return Progress(job.source.total, job.parts.done, job.parts.tokens)

    choice = {name: getattr(args, name) for name in ("resume", "retry_errors", "overwrite")}
    try:
        summary = run(args.input, args.output, settings, **choice, progress=progress)
    except KeyboardInterrupt:
        kept = job_folder(Path(args.output))
        print(f"\ninterrupted; {kept} keeps what is finished: --resume goes on", file=sys.stderr)
        return 130
    print(text(summary))
    return 3 if summary["errors"] else 0


def _options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("input", metavar="INPUT", help="JSONL, Parquet, OpenAI batch file, or folder of images")
    add("-o", "--output", required=True, help="JSONL or Parquet, by its ending")
    add("--workers", type=int, default=1, help="engines on Ray; 0: one, in this process, no Ray")
    add("--ray-address", help="a cluster ('auto', 'ray://..'); left out: a Ray of its own here")
    add("--cpus-per-worker", type=float, help="default: this machine's cores / workers")
    add("--gpus-per-worker", type=float, help="default: as many as an engine's ranks, if any")
    add("--resume", action="store_true", help="go on with a job; starts one if there is none")
    add("--retry-errors", action="store_true", help="go on, and try error rows again")
    add("--overwrite", action="store_true", help="forget an earlier job and its output")
    add("--format", choices=("auto", "rows", "openai"), default="auto", help="of a JSONL input")
    add("--column", action="append", default=[], metavar="FIELD=NAME", help="of a Parquet input")
    add("--logprobs", type=int, help="report the K best tokens of each step (not OpenAI)")
    rows = parser.add_argument_group("for rows that lack it (not OpenAI)")
    rows.add_argument("--question")
    rows.add_argument("--max-tokens", type=int)
    rows.add_argument("--temperature", type=float)
    steering_options(parser, "steering of rows that do not say otherwise")
    map_options(parser, folder_alone=True)


def _settings(args: Namespace, engine_args: Any) -> Any:
    from adaptvis_vllm.batch.job import Settings

    if args.workers < 0:
        raise ValueError(f"--workers must be >= 0, not {args.workers}")
    for name in ("ray_address", "cpus_per_worker", "gpus_per_worker"):
        if args.workers == 0 and getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --workers 0")
    if args.model is None:
        raise ValueError("--model is needed")
    if Path(args.model).is_dir():  # workers may have another working directory
        args.model = str(Path(args.model).resolve())
    settle(vars(args))  # what cannot be is refused here; the workers decide for themselves
    said = {k: v for k, v in vars(args).items() if k not in SWITCHES or v is not None}
    chosen = engine_args.from_cli_args(Namespace(**said))
    plain = engine_args(model=chosen.model)
    engine = {
        k: v
        for k, v in vars(chosen).items()
        if k == "model" or v != getattr(plain, k, None) or (k in SWITCHES and k in said)
    }
    config = mapped_config(args, given_steering(args))
    if config:
        engine["additional_config"] = config
    columns = {}
    for pair in args.column:
        name, equals, column = pair.partition("=")
        if not equals:
            raise ValueError(f"--column must be FIELD=NAME, not {pair!r}")
        columns[name] = column
    fields = ("question", "max_tokens", "temperature")
    return Settings(
        engine=engine,
        workers=args.workers,
        ray_address=args.ray_address,
        cpus=args.cpus_per_worker,
        gpus=args.gpus_per_worker,
        kind=args.format,
        columns=columns,
        defaults={n: getattr(args, n) for n in fields if getattr(args, n) is not None},
        logprobs=args.logprobs,
        maps=args.map_folder and str(args.map_folder.resolve()),
    )
