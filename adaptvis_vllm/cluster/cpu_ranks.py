"""vLLM's Ray executor on a CPU, where vLLM refuses it because the platform has no Ray resource.

Each rank is an actor in a placement group bundle of one CPU. On GPUs vLLM's own applies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def executor_class(original: Callable[..., Any], vllm_config: Any) -> Any:
    """Wraps `Executor.get_class`."""
    from vllm.platforms import current_platform

    backend = vllm_config.parallel_config.distributed_executor_backend
    if backend == "ray" and current_platform.is_cpu():
        from adaptvis_vllm.cluster.cpu_executor import CpuRayExecutor

        return CpuRayExecutor
    return original(vllm_config)
