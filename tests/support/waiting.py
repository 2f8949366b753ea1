"""Waiting for a state, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG_S = 1200  # whatever has not come by then never will: it ends a hang and measures nothing
LOOK_S = 0.1


def until(ready: Callable[[], Any], process: Any = None, log: Path | None = None) -> None:
    """Until ready() is true. AssertionError, with the log's end, if the process ends before."""
    deadline = time.monotonic() + HANG_S
    while not ready():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            if ended and ready():  # it was the last thing that the process did
                return
            said = log.read_text()[-6000:] if log else ""
            raise AssertionError(f"{'the process ended' if ended else 'it hangs'}\n{said}")
        time.sleep(LOOK_S)
