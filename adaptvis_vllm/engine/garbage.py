"""Garbage collection as vLLM is imported and an engine starts.

What imports leave, a million objects, lives as long as the process. Python's collector looks at
it again and again as it grows, and vLLM collects several times more as an engine starts: together
a quarter of a command's first seconds.
"""

from __future__ import annotations

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
