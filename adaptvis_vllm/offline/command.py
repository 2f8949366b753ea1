"""The command `adaptvis generate`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from adaptvis_vllm.files.lines import read_lines
from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.offline.files import check_files, file_options, write
from adaptvis_vllm.offline.runner import RowRunner
from adaptvis_vllm.options import (
    engine_options,
    engine_parser,
    given_steering,
    make_llm,
    map_options,
    mapped_config,
)


def main(argv: Sequence[str], doc: str) -> int:
    """0: all rows answered; 3: some are error rows. Failures are raised."""
    # vLLM has a --runner of its own (auto, generate, ..), so ours is read first.
    early = ArgumentParser(prog="adaptvis generate", add_help=False, allow_abbrev=False)
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

    parser = engine_parser(
        "adaptvis generate",
        f"{doc} --runner v1|v2 chooses vLLM's model runner; v2 on a "
        "CPU runs in Triton's interpreter.",
    )
    file_options(parser)
    map_options(parser)
    engine_options(parser)
    args = parser.parse_args(argv)
    check_files(args)
    config = mapped_config(args, given_steering(args))
    maps = args.map_folder and MapFolder(args.map_folder)
    llm = make_llm(args, additional_config=config)
    runner = RowRunner(llm, args.input.parent, args.logprobs, maps)
    return write(args, runner.run(read_lines(args.input)))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
