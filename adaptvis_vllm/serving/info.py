"""`GET /adaptvis`: what this server steers with, as JSON."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adaptvis_vllm.engine import metrics
from adaptvis_vllm.serving.sweep import ALPHAS_MAX
from adaptvis_vllm.steering import fields

PACKAGES = ("adaptvis-vllm", "torch", "transformers", "triton", "ray")


def describe(engine: Any) -> dict[str, Any]:
    """engine: vLLM's `AsyncLLM`. Counters are those of all API server processes."""
    import vllm
    from vllm.platforms import current_platform

    config = engine.vllm_config
    admission = engine.input_processor.adaptvis
    backend = config.attention_config.backend
    default_backend = "CPU_ATTN" if current_platform.is_cpu() else "auto"
    return {
        "model": config.model_config.served_model_name,
        "steerable": admission.steerable,
        "defaults": asdict(admission.defaults) if admission.defaults else None,
        "versions": {
            "python": platform.python_version(),
            "vllm": vllm.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "backend": {
            "device": config.device_config.device_type,
            "attention": backend.name if backend else default_backend,
            "model_runner": "v2" if config.use_v2_model_runner else "v1",
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "kv_cache_dtype": config.cache_config.cache_dtype,
        },
        "limits": {
            "mode": list(fields.MODES),
            "alpha": {"above": 0, "max": fields.ALPHA_MAX},
            "rule": {
                rule: {"above": 0, "max": high} if low > 0 else {"min": low, "max": high}
                for rule, (low, high) in fields.ALPHAS.items()
            },
            "threshold": {"min": 0, "max": 1},
            "layers": {"min": 0, "max": admission.num_layers - 1} if admission.steerable else None,
            "heads": {"min": 0, "max": admission.num_heads - 1} if admission.steerable else None,
            "confidence": list(fields.CONFIDENCES),
            "confidence_decimals": {"min": 0, "max": fields.DECIMALS_MAX},
            "span": list(fields.SPANS),
            "preset": list(fields.PRESETS),
            "candidates": {"min": 1, "max": admission.max_candidates},
            "sweep_alphas": {"min": 1, "max": ALPHAS_MAX},
        },
        "counters": metrics.totals(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
