"""Garbage collection as vLLM is imported, and as an engine starts and ends.

What imports leave, a million objects, lives as long as the process. Python's collector looks at
it again and again as it grows, and vLLM and Python collect several times more as an engine starts
and as it ends: together half the time of a command that answers little.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """No collection inside; what is there at the end is no garbage.

    `vllm.v1.engine.core.EngineCore.shutdown` takes that back (`gc.unfreeze`).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def end_with_process() -> None:
    """For a process that ends when its engine does: nothing is thawed and looked at then."""
    atexit.register(_keep)


def _keep() -> None:
    gc.freeze()
    setattr(gc, "unfreeze", lambda: None)  # noqa: B010  mypy takes it for a constant
