"""A process of its own for each kind of system, kept alive and driven in turn over a pipe.

Only the one that is asked computes, so alternating costs no restart.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from adaptvis_vllm.bench.systems import REFERENCE, VANILLA, System
from adaptvis_vllm.bench.turns import Turn
from adaptvis_vllm.bench.workloads import Task

WAIT_SECONDS = 1800.0


class Host:
    """kind: one of `systems`. options: arguments of vLLM's `LLM`, with `model`.

    It starts at once; call `wait` before the first `turn`. RuntimeError, with the process's own
    message, where it fails.
    """

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.kind = kind
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, kind, options), daemon=True, name=f"bench-{kind}"
        )
        with _environment(kind):
            self.process.start()
        theirs.close()
        self._starting = True

    def wait(self) -> None:
        """Until it can be asked."""
        if self._starting:
            self._answer()
            self._starting = False

    def turn(
        self,
        work: list[Task],
        chosen: System,
        concurrency: int,
        profile: bool = False,
        delays: list[float] | None = None,
    ) -> Turn:
        """Answer all tasks from empty caches, at most `concurrency` at once or as they arrive."""
        return self.call(_turn, work, chosen, concurrency, profile, delays)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(what answers turns there, *args) in the process. function: of a module."""
        self.pipe.send((function, args))
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self.pipe.poll(WAIT_SECONDS):
                raise RuntimeError(f"the {self.kind} engine did not answer")
            worked, value = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"the {self.kind} engine died") from None
        if not worked:
            raise RuntimeError(f"the {self.kind} engine failed: {value}")
        return value

    def close(self) -> None:
        self.pipe.close()  # the process ends at the end of its pipe
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextmanager
def _environment(kind: str) -> Iterator[None]:
    """What the child's imports must find."""
    before = dict(os.environ)
    os.environ.update(environment(kind))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def environment(kind: str) -> dict[str, str]:
    """Variables of a process of this kind; those that are set already win, but one."""
    import torch

    values = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not torch.cuda.is_available():
        # Huge pages: with small ones, a process was up to 8% faster than another all its life.
        values["THP_MEM_ALLOC_ENABLE"] = "1"
    values = {k: os.environ.get(k, v) for k, v in values.items()}
    if kind == VANILLA:
        values["VLLM_PLUGINS"] = ""
    return values


def _turn(runner: Any, *args: Any) -> Turn:
    return runner.turn(*args)


def _serve(pipe: Any, kind: str, options: dict[str, Any]) -> None:
    from adaptvis_vllm import _torchvision

    try:
        from adaptvis_vllm.bench.engines import Engine, Plain

        _torchvision.ensure()
        runner: Any = Plain(options) if kind == REFERENCE else Engine(kind, options)
        pipe.send((True, None))
        while True:
            try:
                function, args = pipe.recv()
            except EOFError:
                return
            pipe.send((True, function(runner, *args)))
    except Exception as error:
        traceback.print_exc()
        pipe.send((False, f"{type(error).__name__}: {error}"))
