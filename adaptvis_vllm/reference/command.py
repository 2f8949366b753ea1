"""The command `adaptvis reference`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from adaptvis_vllm.files.lines import read_lines
from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.offline.files import check_files, file_options, write
from adaptvis_vllm.options import given_steering, map_options, mapped_config
from adaptvis_vllm.steering.defaults import OPTION, parse


def main(argv: Sequence[str], doc: str) -> int:
    """0: all rows answered; 3: some are error rows. Failures are raised."""
    parser = ArgumentParser(prog="adaptvis reference", description=doc)
    file_options(parser)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--dtype", default="float32", help="torch dtype, default float32")
    parser.add_argument("--device", default="cpu")
    map_options(parser, limit=False)
    parser.set_defaults(additional_config=None)
    args = parser.parse_args(argv)
    check_files(args)
    defaults = parse(mapped_config(args, given_steering(args)).get(OPTION, {})).params
    maps = args.map_folder and MapFolder(args.map_folder)

    from adaptvis_vllm.reference.model import ReferenceModel
    from adaptvis_vllm.reference.rows import run

    model = ReferenceModel(args.model, dtype=args.dtype, device=args.device)
    rows = read_lines(args.input)
    return write(args, run(model, rows, args.input.parent, args.logprobs, defaults, maps))
