"""The command `adaptvis doctor`."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str], doc: str) -> int:
    """0: steering works here, or with the model; 1: it does not. Failures are raised."""
    parser = ArgumentParser(prog="adaptvis doctor", description=doc, allow_abbrev=False)
    parser.add_argument(
        "--sources", type=Path, metavar="DIR", help="only look for the hooks in an unpacked vLLM"
    )
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="compile the kernels for GPUs and print their table; needs no GPU",
    )
    parser.add_argument(
        "--model",
        help="say of a model which prompt positions and layers are steered, or why it cannot be; "
        "needs no weights; vLLM's engine options are taken too",
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="with --model, a picture for the sample prompt"
    )
    args, others = parser.parse_known_args(argv)
    if args.model is not None:
        return _model(args.model, args.image, others)
    if others or args.image:
        parser.error(f"without --model: {' '.join(others) or '--image'}")
    if args.sources is not None:
        from adaptvis_vllm.doctor.sources import missing

        absent = missing(args.sources)
        print("\n".join(f"MISSING  {target}" for target in absent) or "every symbol is there")
        return 1 if absent else 0
    if args.kernels:
        from adaptvis_vllm.kernels.aot import compile as aot

        return aot.main(["--models"])
    from adaptvis_vllm.doctor.environment import report

    text, works = report()
    print(text)
    return 0 if works else 1


def _model(model: str, image: Path | None, options: Sequence[str]) -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from adaptvis_vllm.doctor.model import report

    parser = FlexibleArgumentParser(prog="adaptvis doctor --model")
    EngineArgs.add_cli_args(parser)
    args = EngineArgs.from_cli_args(parser.parse_args(["--model", model, *options]))
    text, works = report(args, image)
    print(text)
    return 0 if works else 1
