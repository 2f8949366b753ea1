"""The command `adaptvis serve`: vLLM's own server with steering defaults."""

from __future__ import annotations

import os
from collections.abc import Sequence

from adaptvis_vllm.serving.options import allowed_plugins, parse, refuse_without


def main(argv: Sequence[str], doc: str) -> int:
    """Serve until stopped. ValueError, before anything is loaded, for wrong options."""
    os.environ["VLLM_PLUGINS"] = allowed_plugins(os.environ.get("VLLM_PLUGINS"))
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args

    args, replicas, ray_address = parse(argv, doc)
    configure_logging_from_args(args)
    command = ServeSubcommand()
    command.validate(args)
    if replicas is None and ray_address is None:
        refuse_without(args)
        command.cmd(args)
        return 0
    from adaptvis_vllm.serving import cluster

    return cluster.serve(args, replicas or 1, ray_address)
