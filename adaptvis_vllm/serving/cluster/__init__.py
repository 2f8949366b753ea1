"""`adaptvis serve` across Ray workers: one vLLM engine a replica, one OpenAI endpoint.

Imports `cluster`, `serving.options` and `serving.app`, and Ray only where it is needed: its
`__init__` is imported without.
"""

from __future__ import annotations

import argparse
from typing import Any


def serve(args: argparse.Namespace, replicas: int, ray_address: str | None) -> int:
    """Serve until stopped; returns the exit status.

    args: options of `vllm serve`, and of `serving.options.add_options`. ray_address: a cluster, or
    None for a Ray of its own on this machine. RuntimeError if no replica starts, ValueError
    for options that cannot be served across replicas, OSError if the port is taken.
    """
    from adaptvis_vllm.serving.cluster.run import run

    return run(args, replicas, ray_address)


def app(arguments: dict[str, Any]) -> Any:
    """The Serve application, for `serve run` and the `serveConfigV2` of a RayService.

    arguments: {"serve": "MODEL --replicas 2 ..."}, the command line of `adaptvis serve`, as
    one string or a list. Serve's own configuration sets host and port.
    """
    from adaptvis_vllm.serving.cluster.deployment import from_command

    return from_command(arguments)
