"""How far a job is: one live line on a terminal, else a plain line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import TextIO

from adaptvis_vllm.batch.parts import Parts

PLAIN_SECONDS = 10.0
WINDOW_SECONDS = 30.0


class Progress:
    """total: rows of the job. done: those of earlier attempts, not counted in rates."""

    def __init__(
        self, total: int, done: int, tokens: int = 0, out: TextIO | None = None, plain: bool = False
    ) -> None:
        self.total = total
        self.out = out or sys.stderr
        self.live = self.out.isatty() and not plain
        self.samples: deque[tuple[float, int, int]] = deque([(time.monotonic(), done, tokens)])
        self.first = done
        self.printed = 0.0 if self.live else time.monotonic()

    def show(self, parts: Parts, last: bool = False) -> None:
        now, done = time.monotonic(), parts.done
        self.samples.append((now, done, parts.tokens))
        while len(self.samples) > 2 and now - self.samples[0][0] > WINDOW_SECONDS:
            self.samples.popleft()
        if not last and not self.live and now - self.printed < PLAIN_SECONDS:
            return
        self.printed = now
        text = self.line(done, parts.errors, parts.branches["low"], parts.branches["high"])
        if self.live:
            width = shutil.get_terminal_size().columns
            bar = self._bar(done, width - len(text) - 3)
            print(f"\r\x1b[2K{bar}{text}"[: width + 5], end="\n" if last else "", file=self.out)
        else:
            print(text, file=self.out)
        self.out.flush()

    def line(self, done: int, errors: int, low: int, high: int) -> str:
        (then, rows, tokens), (now, rows_now, tokens_now) = self.samples[0], self.samples[-1]
        seconds = max(now - then, 1e-6)
        rate = (rows_now - rows) / seconds
        left = clock((self.total - done) / rate) if rate > 0 else "?"
        if done == self.first:
            return f"{done}/{self.total} rows · engines are starting"
        share = ""
        if low + high:
            share = f" · low {100 * low / (low + high):.0f}% high {100 * high / (low + high):.0f}%"
        return (
            f"{done}/{self.total} rows · {rate:.1f} rows/s · "
            f"{(tokens_now - tokens) / seconds:.0f} tokens/s{share} · {errors} errors · {left} left"
        )

    def _bar(self, done: int, width: int) -> str:
        width = min(width, 30)
        if width < 5:
            return ""
        full = width * done // max(1, self.total)
        return f"[{'#' * full}{'.' * (width - full)}] "


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
