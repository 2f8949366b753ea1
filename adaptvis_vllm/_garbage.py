"""Python's garbage collector in the processes of `adaptvis`, which end when their engine does.

What imports leave, a million objects, lives as long as the process. Python's collector looks at
all of it again and again as it grows, and vLLM calls the collector several times more as an engine
starts and ends (`vllm.v1.engine.core`, `vllm.utils.gc_utils`): together a third of the processor
time of a command that answers little, and of a server's start.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_thaw = gc.unfreeze
_ours = False


def ours() -> None:
    """Call before anything large is imported, in a process that ends when its engine does.

    Young objects are looked at after 50,000 of them instead of 700; what is frozen (`imported`, and
    vLLM's `freeze_gc_heap` as an engine has started) stays so when an engine ends. Again is
    harmless.
    """
    global _ours
    if _ours:
        return
    _ours = True
    gc.set_threshold(50_000, 20, 100)
    # Last of all, for Python's own last collection: nanobind reports what that leaves as leaks.
    atexit.register(_thaw)
    setattr(gc, "unfreeze", lambda: None)  # noqa: B010  mypy takes it for a constant


def imported() -> None:
    """vLLM is imported and no engine made: in a process of ours, what is there is no garbage."""
    if _ours:
        gc.freeze()


@contextmanager
def importing() -> Iterator[None]:
    """Around the first import of vLLM in a process that goes on after its engine, or makes others:
    no collection inside, and what is there at the end is no garbage, until an engine ends."""
    if "vllm.entrypoints.llm" in sys.modules:
        yield
        return
    was = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was:
            gc.enable()
