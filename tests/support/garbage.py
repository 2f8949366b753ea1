"""vLLM collects garbage some nine times as an engine starts and ends: not, in tests, among all that
they imported, which would take most of their time."""

from __future__ import annotations

import atexit
import gc

_freeze, _unfreeze = gc.freeze, gc.unfreeze
gc.set_threshold(50_000)
gc.freeze = gc.unfreeze = lambda: None  # vLLM's own: what an engine leaves must be collected
atexit.register(_unfreeze)  # nanobind would report what stays frozen as leaks
_times = 0


def freeze() -> None:
    """Before an engine starts. The first three bring nearly all imports with them."""
    global _times
    if _times < 3:
        _times += 1
        _freeze()
