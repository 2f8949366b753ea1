"""What the options of replicas come to, without starting any."""

from __future__ import annotations

import argparse
import os
import socket
from typing import Any

import pytest

from adaptvis_vllm.serving import cluster
from adaptvis_vllm.serving.cluster import run
from adaptvis_vllm.serving.cluster.deployment import application, resources
from adaptvis_vllm.serving.cluster.run import free
from adaptvis_vllm.serving.options import check, parse


def options(*words: str) -> argparse.Namespace:
    return parse(["some/model", *words])[0]


@pytest.mark.parametrize(
    "words",
    [
        ("--max-replicas", "1"),
        ("--cpus-per-replica", "-1"),
        ("--gpus-per-replica", "-1"),
        ("--max-ongoing-requests", "0"),
        ("--drain-timeout", "-1"),
        ("--uds", "socket"),
        ("--api-server-count", "2"),
        ("--data-parallel-size", "2"),
    ],
)
def test_refused(words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=words[0]):
        check(options(*words), replicas=2)


def test_defaults_are_allowed() -> None:
    check(options(), replicas=2)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"--port {port}"):
            free("127.0.0.1", port)
    free("127.0.0.1", port)


def placed(*words: str) -> dict[str, Any]:
    """`resources` without the environment."""
    chosen = resources(options(*words), 2, "folder")
    env = chosen["ray_actor_options"].pop("runtime_env")["env_vars"]
    assert env["PROMETHEUS_MULTIPROC_DIR"] == "folder"
    return chosen


RAY = ("--distributed-executor-backend", "ray", "--tensor-parallel-size", "2")


def test_resources_on_a_cpu() -> None:
    assert placed() == {"ray_actor_options": {"num_cpus": 2, "num_gpus": 0}}
    assert placed("--cpus-per-replica", "4")["ray_actor_options"]["num_cpus"] == 4
    assert placed(*RAY)["placement_group_bundles"] == [{"CPU": 1}] * 3


def test_resources_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU for each rank: the replica's own, or those of the ranks' bundles."""
    from vllm.platforms import current_platform

    here, on_ray = options("--tensor-parallel-size", "2"), options(*RAY)
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    assert resources(here, 2, "folder")["ray_actor_options"]["num_gpus"] == 2
    chosen = resources(on_ray, 2, "folder")
    assert "num_gpus" not in chosen["ray_actor_options"]
    assert chosen["placement_group_bundles"] == [{"CPU": 2}, {"GPU": 1}, {"GPU": 1}]


def test_scaling() -> None:
    fixed = application(options(), 2, 1, "folder")._bound_deployment
    assert fixed.num_replicas == 2
    words = ("--max-replicas", "4", "--max-ongoing-requests", "10")
    scaled = application(options(*words), 2, 1, "folder")._bound_deployment
    config = scaled._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (2, 4, 5)


@pytest.mark.parametrize("arguments", [{}, {"serve": 3}, {"serve": "model", "port": 1}])
def test_arguments_of_the_application(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="args must be"):
        cluster.app(arguments)


@pytest.mark.parametrize(
    "words",
    [
        ("--ray-address", "auto"),
        ("--host", "0.0.0.0"),
        ("--port", "8001"),
        ("--ssl-keyfile", "key"),
    ],
)
def test_an_application_is_told_nothing_that_it_would_drop(words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=f"^{words[0]}:"):
        cluster.app({"serve": ["some/model", "--replicas", "2", *words]})


@pytest.mark.parametrize("most", [(), ("--max-replicas", "4")])
def test_a_ray_of_our_own_has_this_machines_cores(
    monkeypatch: pytest.MonkeyPatch, most: tuple[str, ...]
) -> None:
    """Shared by as many replicas as there may be."""
    planned: list[int] = []

    def connected(address: str | None, cpus: int, *_: Any, **__: Any) -> Any:
        planned.append(cpus)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(run, "connected", connected)
    assert run.run(options("--port", "0", *most), 1, None) == 0
    assert planned == [8]
