"""The command `adaptvis reference`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from adaptvis_vllm.files.lines import read_lines
from adaptvis_vllm.offline.files import check_files, file_options, write


def main(argv: Sequence[str], doc: str) -> int:
    """0: all rows answered; 3: some are error rows. Failures are raised."""
    parser = ArgumentParser(prog="adaptvis reference", description=doc)
    file_options(parser)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--dtype", default="float32", help="torch dtype, default float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    check_files(args)

    from adaptvis_vllm.reference.model import ReferenceModel
    from adaptvis_vllm.reference.rows import run

    model = ReferenceModel(args.model, dtype=args.dtype, device=args.device)
    return write(args, run(model, read_lines(args.input), args.input.parent, args.logprobs))
