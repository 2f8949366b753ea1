"""The files of deploy/, as far as they can be checked without a daemon or a cluster."""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from support.waiting import HANG_S

from adaptvis_vllm.engine import compat

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())["spec"]


def options(line: list[str]) -> argparse.Namespace:
    from adaptvis_vllm.serving.options import parse

    return parse(line)[0]


def test_dockerfile() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (tag,) = [line.split(":v")[1] for line in text.splitlines() if line.startswith("FROM ")]
    assert compat.refuse_version(tag) is None
    sources = [
        word for line in text.splitlines() if line.startswith("COPY ") for word in line.split()
    ]
    for name in sources[1:]:
        assert name in ("COPY", "./") or (ROOT / name).exists()


def test_compose() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["adaptvis"]
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert options(service["command"]).host == "0.0.0.0"
    assert service["ports"] == [f"{options(service['command']).port}:8000"]


def test_pods(cluster: dict[str, Any]) -> None:
    """Against the schemas of Kubernetes."""
    ray = cluster["rayClusterConfig"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
        pod["spec"] = group["template"]["spec"]
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert packages["optional-dependencies"]["ray"][0].endswith(f"=={ray['rayVersion']}")


def test_serve_config(cluster: dict[str, Any]) -> None:
    """Against Ray Serve's schema; its arguments are those of `adaptvis serve`."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(cluster["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    args = options(shlex.split(application.args["serve"]))
    (workers,) = cluster["rayClusterConfig"]["workerGroupSpecs"]
    assert args.max_replicas == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert args.cpus_per_replica <= float(container["resources"]["requests"]["cpu"])


def test_the_callback_is_the_middleware(cluster: dict[str, Any]) -> None:
    from adaptvis_vllm.serving.cluster.routing import CALLBACK

    ray = cluster["rayClusterConfig"]
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        given = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert CALLBACK.items() <= given.items()
