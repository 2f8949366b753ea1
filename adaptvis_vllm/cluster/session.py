"""A Ray of our own on this machine, or a cluster, and what its workers need to know."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

# Read by vLLM, torch and tokenizers in the workers; what is set here goes to them.
PASSED = (
    *("HF_HUB_OFFLINE", "HF_HOME", "VLLM_", "TORCHDYNAMO_DISABLE", "TOKENIZERS_PARALLELISM"),
    *("OMP_NUM_THREADS", "PYTHONHASHSEED"),
)
LOOPBACK = "127.0.0.2"  # 127.0.0.1 would become the machine's own address


def worker_env() -> dict[str, str]:
    """Environment variables for the workers of an engine."""
    return {k: v for k, v in os.environ.items() if k.startswith(PASSED)} | {
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONSAFEPATH": "1",
    }


@contextmanager
def connected(
    address: str | None,
    cpus: int,
    object_store: int,
    env: dict[str, str] | None = None,
    **more: Any,
) -> Iterator[None]:
    """The cluster at `address`, or without one a Ray of our own with `cpus` logical CPUs and
    `object_store` bytes; it ends with the block. env: for the processes of our own job.

    In a Ray of our own the children of a worker that is killed are killed with it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common: dict[str, Any] = {"logging_level": logging.ERROR, **more}
    if env:
        common["runtime_env"] = {"env_vars": env}
    if address is not None:
        ray.init(address, **common)
    else:
        os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
        ray.init(
            "local",
            num_cpus=cpus,
            object_store_memory=object_store,
            include_dashboard=False,
            _node_ip_address=LOOPBACK,
            **common,
        )
    try:
        yield
    finally:
        ray.shutdown()
