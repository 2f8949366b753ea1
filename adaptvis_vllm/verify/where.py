"""Step `where`: the machine, vLLM, and the engine that was made."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from adaptvis_vllm.bench.machine import facts


def machine() -> dict[str, Any]:
    """Hardware, versions, and the attention backends that can be steered and load here."""
    found = facts()
    if found["gpu"] is not None:
        import torch

        found["gpus"] = torch.cuda.device_count()
        found["driver"] = _driver()
        found["cuda"] = torch.version.cuda
    found["backends"] = "/".join(offered())
    return found


def offered() -> list[str]:
    """Names of the supported backends that this vLLM can load on this machine."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from adaptvis_vllm.engine.attention.wrap import BACKENDS

    cpu = current_platform.is_cpu()
    names = []
    for name in sorted(BACKENDS):
        if cpu != (name == "CPU_ATTN"):
            continue
        try:
            AttentionBackendEnum[name].get_class()
        except ImportError:  # an optional package of vLLM's that is not installed
            continue
        names.append(name)
    return names


def engine(host: Any) -> dict[str, Any]:
    """Of an engine in this process: what was chosen for it. host: has the `LLM` as `llm`."""
    from adaptvis_vllm.plugin import HOOKS

    config = host.llm.llm_engine.vllm_config
    worker = getattr(host.core.engine_core.model_executor, "driver_worker", None)
    found = {
        "layers": config.model_config.get_total_num_hidden_layers(),
        "CUDA graphs": config.compilation_config.cudagraph_mode.name,
        "compilation": config.compilation_config.mode.name,
        "block size": config.cache_config.block_size,
        "prefix caching": bool(config.cache_config.enable_prefix_caching),
        "asynchronous scheduling": bool(config.scheduler_config.async_scheduling),
        "hooks": len(HOOKS),
    }
    if worker is not None:
        module = type(worker.worker.model_runner).__module__
        found = {"model runner": "V2" if ".gpu." in module else "V1"} | found
    return found


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() or None
