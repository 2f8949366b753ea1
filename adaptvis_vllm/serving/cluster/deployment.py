"""The Serve application: resources, routing, scaling, health and drain of the replicas."""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray import serve

from adaptvis_vllm.cluster.session import worker_env
from adaptvis_vllm.serving.cluster.replica import METRICS_FOLDER, Replica
from adaptvis_vllm.serving.cluster.routing import ROUTER
from adaptvis_vllm.serving.options import allowed_plugins, check, check_deployed, parse

NAME = "adaptvis"
HEALTH_PERIOD_S = 2.0
STARTS = 2  # of a replica that does not come up, before the whole application fails


def application(
    args: argparse.Namespace, replicas: int, cpus: float, metrics: str
) -> serve.Application:
    """args: options of `vllm serve` and of `serving.options.add_options`. cpus: of a replica, where
    the options do not say. metrics: folder in which the replicas of a node keep counters, so
    that `/metrics` of any of them has the sum."""
    check(args, replicas)
    scaling: dict[str, Any] = {"num_replicas": replicas}
    if args.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas,
                "max_replicas": args.max_replicas,
                "target_ongoing_requests": max(1, args.max_ongoing_requests // 2),
            }
        }
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=args.max_ongoing_requests,
        request_router_config={"request_router_class": ROUTER},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=args.drain_timeout,
        max_constructor_retry_count=STARTS,
        **scaling,
        **resources(args, cpus, metrics),
    )
    return deployment(Replica).bind(args)


def resources(args: argparse.Namespace, cpus: float, metrics: str) -> dict[str, Any]:
    """`ray_actor_options` of a replica; with vLLM's Ray executor a placement group too, in
    which the replica has the first bundle and each rank one of its own."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    cpus = cpus if args.cpus_per_replica is None else args.cpus_per_replica
    gpus = args.gpus_per_replica
    if gpus is None:
        gpus = 0 if on_cpu else ranks
    env = worker_env() | {METRICS_FOLDER: metrics}
    if on_cpu and args.cpus_per_replica is not None:
        env["OMP_NUM_THREADS"] = str(max(1, int(cpus)))
    actor: dict[str, Any] = {"num_cpus": cpus, "runtime_env": {"env_vars": env}}
    if not uses_ray(args):
        return {"ray_actor_options": actor | {"num_gpus": gpus}}
    if on_cpu:
        actor["num_cpus"] = 1  # a bundle may hold one device, and the device is the CPU
        # vLLM takes every bundle with a device for a rank's; the first is the replica's.
        env["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, range(1, ranks + 1)))
    rank = {"CPU": 1.0} if on_cpu else {"GPU": 1.0}
    return {
        "ray_actor_options": actor,
        "placement_group_bundles": [{"CPU": actor["num_cpus"]}, *[rank] * ranks],
        "placement_group_strategy": "PACK",
    }


def uses_ray(args: argparse.Namespace) -> bool:
    """Whether the engine's ranks are Ray actors."""
    return args.distributed_executor_backend == "ray"


def from_command(arguments: dict[str, Any]) -> serve.Application:
    """`adaptvis_vllm.serving.cluster.app`."""
    os.environ["VLLM_PLUGINS"] = allowed_plugins(os.environ.get("VLLM_PLUGINS"))
    unknown = sorted(arguments.keys() - {"serve"})
    line = arguments.get("serve")
    if unknown or not isinstance(line, str | list):
        raise ValueError(
            f"args must be {{serve: MODEL and options of adaptvis serve}}, not {arguments}"
        )
    args, replicas, ray_address = parse(shlex.split(line) if isinstance(line, str) else line)
    check_deployed(args, ray_address)
    metrics = Path(tempfile.gettempdir()) / f"adaptvis-metrics-{uuid4().hex}"
    return application(args, replicas or 1, cpus=1, metrics=str(metrics))


def cpus_here(replicas: int) -> float:
    """This machine's cores, shared."""
    return max(1, (os.cpu_count() or 1) // replicas)
