"""The command `adaptvis serve`: vLLM's own server with steering defaults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

PLUGIN = "adaptvis"  # the name of this package's entry points
# Groups that vLLM loads whole where VLLM_PLUGINS is not set. Endpoint plugins are opt-in.
_GROUPS = ("general", "io_processor", "platform", "stat_logger")


def main(argv: Sequence[str], doc: str) -> int:
    """Serve until stopped. ValueError, before anything is loaded, for wrong options."""
    os.environ["VLLM_PLUGINS"] = allowed_plugins(os.environ.get("VLLM_PLUGINS"))
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args

    from adaptvis_vllm.serving.cluster.options import refuse_without

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


def parse(argv: Sequence[str], doc: str = "") -> tuple[argparse.Namespace, int | None, str | None]:
    """(options of `vllm serve` with our defaults in them, replicas, Ray address)."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from adaptvis_vllm.engine.compilation import SWITCHES
    from adaptvis_vllm.options import steering_options
    from adaptvis_vllm.serving.cluster.options import add_options

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

    from adaptvis_vllm.engine.compilation import SWITCHES, settle
    from adaptvis_vllm.options import STEERING, cache_bytes, given_steering
    from adaptvis_vllm.steering.defaults import steered_config

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


async def build(engine: Any, args: argparse.Namespace) -> Any:
    """vLLM's FastAPI app, our routes included, ready to serve an `AsyncLLM`."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    return app
