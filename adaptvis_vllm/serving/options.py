"""Options of `adaptvis serve`: those of `vllm serve`, steering, and what Ray Serve reads."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import entry_points

from adaptvis_vllm.engine.compilation import SWITCHES, settle
from adaptvis_vllm.options import STEERING, cache_bytes, given_steering, steering_options
from adaptvis_vllm.steering.defaults import steered_config

PLUGIN = "adaptvis"  # the name of this package's entry points
# Groups that vLLM loads whole where VLLM_PLUGINS is not set. Endpoint plugins are opt-in.
_GROUPS = ("general", "io_processor", "platform", "stat_logger")
# Requests that a replica takes before its neighbours are asked, then the proxy's queue.
ONGOING = 256
DRAIN_S = 60.0
# Of `vllm serve`: what Serve's own proxies are told.
PORT = 8000
TLS = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs")


def parse(argv: Sequence[str], doc: str = "") -> tuple[argparse.Namespace, int | None, str | None]:
    """(options of `vllm serve` with our defaults in them, replicas, Ray address)."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="adaptvis")
    serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    serve.prog = "adaptvis serve"
    serve.usage = "adaptvis serve MODEL [options]"
    serve.description = f"{doc} All options of `vllm serve` are accepted."
    cluster = serve.add_argument_group("Ray Serve")
    cluster.add_argument("--replicas", type=int, help="engines behind one endpoint")
    cluster.add_argument("--ray-address", help="a cluster; left out, a Ray of its own here")
    add_options(cluster)
    title = "Steering of requests that do not say otherwise"
    steering_options(serve, title, mode="--adaptvis-mode")
    # vLLM's own default is some small model; the others are `compilation.settle`'s to choose.
    serve.set_defaults(model=None, **dict.fromkeys(SWITCHES))
    args = parser.parse_args(["serve", *argv])
    replicas, ray_address = vars(args).pop("replicas"), vars(args).pop("ray_address")
    if replicas is not None and replicas < 1:
        raise ValueError(f"--replicas must be at least 1, not {replicas}")
    complete(args, max(replicas or 1, args.max_replicas or 1))
    return args, replicas, ray_address


def complete(args: argparse.Namespace, replicas: int) -> None:
    """Put model, steering and our defaults into the options, in place. replicas: at most."""
    from vllm.engine.arg_utils import EngineArgs

    args.model = args.model_tag or args.model
    if args.model is None:
        raise ValueError("MODEL is needed")
    args.additional_config = steered_config(args.additional_config, given_steering(args))
    for name in STEERING:  # vLLM's own options alone remain
        delattr(args, name)
    settled = settle(vars(args))
    for name in SWITCHES:
        setattr(args, name, settled.get(name, getattr(EngineArgs, name)))
    engines = replicas * (args.data_parallel_size_local or args.data_parallel_size)
    args.kv_cache_memory_bytes = cache_bytes(args.kv_cache_memory_bytes, 0.25 / engines)
    for name, value in environment(engines).items():
        os.environ.setdefault(name, value)


def environment(engines: int = 1) -> dict[str, str]:
    """Variables for every process of a server, where the user has not set them.

    engines: how many share this machine's cores: on a CPU all would be bound to the same ones.
    """
    from vllm.platforms import current_platform

    chosen = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # as `vllm serve` does
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if current_platform.is_cpu() and engines > 1:
        chosen["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        chosen["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // engines))
    return chosen


def allowed_plugins(given: str | None) -> str:
    """VLLM_PLUGINS that loads what `given` does and our HTTP routes, which need to be named.

    ValueError if the user left us out.
    """
    if given is None:
        names: set[str] = {PLUGIN}
        for group in _GROUPS:
            names |= {point.name for point in entry_points(group=f"vllm.{group}_plugins")}
        return ",".join(sorted(names))
    if PLUGIN not in given.split(","):
        raise ValueError(f"VLLM_PLUGINS is {given!r}: it must contain {PLUGIN!r}, or be unset")
    return given


def add_options(group: argparse._ActionsContainer) -> None:
    """Add those that only Ray Serve reads to a parser's group; `check` looks at them."""
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
