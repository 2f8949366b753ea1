"""Python's garbage collector in the processes of `adaptvis`, which end when their engine does.

What imports leave, a million objects, lives as long as the process. Python's collector looks at
all of it again and again as it grows, and vLLM calls the collector several times more as an engine
starts and ends (`vllm.v1.engine.core`, `vllm.utils.gc_utils`): together a third of the processor
time of a command that answers little, and of a server's start.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_thaw = gc.unfreeze
_ours = False
_status: int | None = None


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
    gc.set_threshold(50_000)
    atexit.register(_end)  # the first, so that it comes after all others
    setattr(gc, "unfreeze", lambda: None)  # noqa: B010  mypy takes it for a constant


def ends(status: int) -> int:
    """The status, with which this process of ours ends once all `atexit` functions have run: not
    after Python took a million objects apart, which is longer than an engine takes to end."""
    global _status
    _status = status
    return status


def _end() -> None:
    if _status is None:
        _thaw()  # nanobind reports what Python's own last collection leaves as leaks
        return
    status = _status
    try:
        print(end="", flush=True)
    except OSError as error:  # nobody reads it
        status = status or 1
        print(f"adaptvis: {error}", file=sys.stderr)
    print(end="", flush=True, file=sys.stderr)
    os._exit(status)


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
