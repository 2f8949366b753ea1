"""Model Runner V2 on a CPU, in Triton's interpreter: slow, for checking only."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace


def enable() -> None:
    """Call before vLLM is imported. RuntimeError if that is too late, or without Triton."""
    if "vllm" in sys.modules:
        raise RuntimeError("adaptvis: the interpreted runner must be chosen before importing vllm")
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the stub below is this process's
    try:
        from triton.backends import backends
    except ImportError as error:
        raise RuntimeError("adaptvis: the interpreted runner needs the package triton") from error
    backends["cpu"] = SimpleNamespace(  # type: ignore[assignment]
        compiler=None, driver=SimpleNamespace(is_active=lambda: True)
    )
