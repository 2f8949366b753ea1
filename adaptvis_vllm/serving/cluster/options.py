"""Options of `adaptvis serve` that only Ray Serve reads."""

from __future__ import annotations

import argparse

# Requests that a replica takes before its neighbours are asked, then the proxy's queue.
ONGOING = 256
DRAIN_S = 60.0
# Of `vllm serve`: what Serve's own proxies are told.
PORT = 8000
TLS = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs")


def add_options(group: argparse._ActionsContainer) -> None:
    """Add them to a parser's group; `check` reads them."""
    add = group.add_argument
    add("--max-replicas", type=int, help="autoscale from --replicas up to this many")
    add("--cpus-per-replica", type=float, help="logical CPUs; default: cores / replicas, or 1")
    add("--gpus-per-replica", type=float, help="default: as many as an engine has ranks")
    add(
        "--max-ongoing-requests",
        type=int,
        default=ONGOING,
        help="of one replica; what is over goes to others or waits; autoscaling aims at half",
    )
    add(
        "--drain-timeout",
        type=float,
        default=DRAIN_S,
        help="seconds that a replica which is to stop has for its requests",
    )


def refuse_without(args: argparse.Namespace) -> None:
    """ValueError for options that a server without replicas would not read."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    for name, default in vars(parser.parse_args([])).items():
        if getattr(args, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} needs --replicas")


def check_deployed(args: argparse.Namespace, ray_address: str | None) -> None:
    """ValueError for what an application that Serve's configuration deploys would not read."""
    if ray_address is not None:
        raise ValueError("--ray-address: the application runs in the cluster that deploys it")
    given = [n for n in ("host", *TLS) if getattr(args, n) is not None]
    if args.port != PORT:
        given.append("port")
    if given:
        option = given[0].replace("_", "-")
        raise ValueError(f"--{option}: Serve's own configuration says it, in http_options")


def check(args: argparse.Namespace, replicas: int) -> None:
    """ValueError for what cannot be served across replicas."""
    most = args.max_replicas
    if most is not None and most < replicas:
        raise ValueError(f"--max-replicas must be at least --replicas ({replicas}), not {most}")
    for name in ("cpus_per_replica", "gpus_per_replica"):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0, not {value}")
    if args.max_ongoing_requests < 1:
        raise ValueError(
            f"--max-ongoing-requests must be at least 1, not {args.max_ongoing_requests}"
        )
    if args.drain_timeout < 0:
        raise ValueError(f"--drain-timeout must be at least 0, not {args.drain_timeout}")
    for name, one_server in (("uds", None), ("headless", False), ("grpc", False)):
        if getattr(args, name, one_server) not in (one_server, None):
            raise ValueError(f"--{name} does not go with --replicas")
    if (args.api_server_count or 1) > 1 or args.data_parallel_size > 1:
        raise ValueError("--api-server-count and --data-parallel-size do not go with --replicas")
