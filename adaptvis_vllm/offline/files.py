"""The files of a command that answers rows: --input and --output."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adaptvis_vllm.files.lines import dumps, lines_of
from adaptvis_vllm.options import check_apart


def file_options(parser: ArgumentParser) -> None:
    """Add --input, --output and --logprobs."""
    parser.add_argument("--input", type=Path, required=True, help="JSONL, one request a line")
    parser.add_argument("--output", type=Path, required=True, help="JSONL, in input order")
    parser.add_argument("--logprobs", type=int, help="report the K best tokens of each step")


def check_files(args: Namespace) -> None:
    """ValueError for files that cannot be read or written."""
    if not args.input.is_file():
        raise ValueError(f"--input: no such file {args.input}")
    if args.input.suffix.lower() == ".parquet":
        raise ValueError("--input must be JSONL; `adaptvis batch` reads Parquet")
    if not args.output.parent.is_dir():
        raise ValueError(f"--output: no such folder {args.output.parent}")
    check_apart(args.output, args.input)


def write(args: Namespace, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as they come, with a progress bar; 0, or 3 if some are error rows."""
    from tqdm import tqdm

    total = sum(1 for _ in lines_of(args.input))
    errors = 0
    with args.output.open("wb") as out:
        for row in tqdm(rows, total=total, unit="row", dynamic_ncols=True):
            errors += row["error"] is not None
            out.write(dumps(row) + b"\n")
            out.flush()
    if errors:
        print(f"{errors} of {total} rows are error rows: see their field error", file=sys.stderr)
    return 3 if errors else 0
