"""The command `adaptvis verify`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from adaptvis_vllm.verify import STEPS
from adaptvis_vllm.verify.checks import as_json, markdown

SMALL = Path("models") / "spatial-llava"  # of a checkout


def main(argv: Sequence[str], doc: str) -> int:
    """0: no check failed. 1: one did."""
    given = list(argv)
    early = argparse.ArgumentParser(prog="adaptvis verify", add_help=False, allow_abbrev=False)
    early.add_argument("--runner", choices=("v1", "v2"))
    known, rest = early.parse_known_args(given)
    args = _parse(rest, doc)
    _check(args, known.runner)

    from adaptvis_vllm.verify import run, where
    from adaptvis_vllm.verify.questions import draw

    facts = where.machine()
    print(", ".join(f"{k} {v}" for k, v in facts.items() if v is not None), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        args.small = args.model is None
        if args.small:
            args.model = str(_small_model(Path(folder)))
        references = run.References(args.model, draw(args.questions))
        found = [
            run.configuration(args, backend, dtype, references, _say)
            for backend, dtype in run.configurations(args, where.offered())
        ]
    model = Path(args.model).name if Path(args.model).is_dir() else args.model
    result = as_json(shlex.join(["adaptvis", "verify", *given]), model, facts, found)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "verify.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (args.out / "verify.md").write_text(markdown(result), encoding="utf-8")
    failed = sum(check.passed is False for one in found for check in one.checks)
    print(f"\n{markdown(result)}")
    print(f"{failed} checks failed" if failed else "no check failed", end="; ")
    print(f"the table to paste is {args.out / 'verify.md'}")
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _parse(argv: Sequence[str], doc: str) -> Namespace:
    from adaptvis_vllm.options import engine_options, engine_parser

    parser = engine_parser(
        "adaptvis verify", f"{doc} --runner v1|v2 chooses vLLM's model runner, on a GPU."
    )
    add = parser.add_argument
    add("--backends", type=_names, help="attention backends, A,B; default: all that load here")
    add("--steps", type=_names, default=STEPS, help=f"default {','.join(STEPS)}")
    add("--questions", type=int, default=40, help="default 40")
    add("--out", type=Path, default=Path("out/verify"), help="folder of verify.json, verify.md")
    engine_options(parser)
    args = parser.parse_args(list(argv))
    args.plain = parser.parse_args([])
    return args


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _check(args: Namespace, runner: str | None) -> None:
    """ValueError before anything is started; sets the model runner."""
    import torch

    for step in args.steps:
        if step not in STEPS:
            raise ValueError(f"--steps: {step!r} is not one of {', '.join(STEPS)}")
    if args.questions < 16:
        raise ValueError(f"--questions must be >= 16, not {args.questions}")
    if runner is None:
        return
    if not torch.cuda.is_available() and runner == "v2":
        raise ValueError("--runner v2 needs a GPU: on a CPU vLLM runs it for checks only")
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(runner == "v2"))


def _small_model(folder: Path) -> Path:
    """The repository's, run from a checkout; else a seeded random one of LLaVA-1.5's shape."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / SMALL / "config.json").is_file():
            return root / SMALL
    from adaptvis_vllm.bench.model import Shape, make_model

    shape = Shape(layers=6, hidden=256, heads=8, kv_heads=4, vocab=1024, image=112, vision_layers=2)
    return make_model(folder / "random-llava", shape)
