"""Steered attention kernels over a paged KV cache: Triton, C++ for CPUs, the torch reference.

Imports nothing of the rest of the package. Names resolve on first use: importing this package needs
neither a GPU nor Triton.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .gpu.launch import steered_attention
    from .reference import attention_weights_reference, steered_attention_reference

__all__ = ["attention_weights_reference", "steered_attention", "steered_attention_reference"]

_HOME = {
    "attention_weights_reference": ".reference",
    "steered_attention": ".gpu.launch",
    "steered_attention_reference": ".reference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
