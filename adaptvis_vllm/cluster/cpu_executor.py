"""The executor of `cpu_ranks`; its actors import this module."""

from __future__ import annotations

from typing import Any

import ray
from vllm.platforms import current_platform
from vllm.v1.executor import ray_executor_v2
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2, RayWorkerProc

from adaptvis_vllm.cluster.session import worker_env


class CpuRayWorkerProc(RayWorkerProc):
    """A rank without a device of its own."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), []


class CpuRayExecutor(RayExecutorV2):
    """For an engine on a CPU."""

    def _init_executor(self) -> None:
        # Read by name there, in this process alone.
        current_platform.ray_device_key = "CPU"
        ray_executor_v2.RayWorkerProc = CpuRayWorkerProc  # type: ignore[misc]
        super()._init_executor()

    def _build_runtime_env(self) -> dict[str, Any]:
        """torch reads its own variables when it is imported, before vLLM sets the others."""
        env = super()._build_runtime_env()
        env["env_vars"] |= worker_env()
        return env

    @staticmethod
    def _get_actor_resource_kwargs() -> dict[str, Any]:
        return {"num_gpus": 0}  # and no CPU either: its bundle holds one
