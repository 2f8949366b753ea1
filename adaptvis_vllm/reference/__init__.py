"""The oracle: the method in eager transformers, two prompt passes for adaptive steering.

Imports `offline`, `steering` and `files`; nothing of batches or evaluation, and never
an engine, whose answers it judges.
"""

from typing import Any

__all__ = ["ReferenceModel"]


def __getattr__(name: str) -> Any:
    if name == "ReferenceModel":  # here: it imports torch and transformers
        from adaptvis_vllm.reference.model import ReferenceModel

        return ReferenceModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
