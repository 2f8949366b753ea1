"""Where the time of an engine's steps goes.

Timers around the functions of one live engine. Times are exclusive: what a timed function
calls that is timed too counts for that one only. On a GPU every border waits for the device,
which makes steps slower than they are unprofiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

# Part -> attributes of the object that does it; what this vLLM's runner lacks is left out.
RUNNER = {
    "input preparation": (
        *("_update_states", "_prepare_inputs", "_build_attention_metadata", "_preprocess"),
        *("prepare_inputs", "prepare_attn"),
    ),
    "vision": ("_execute_mm_encoder", "get_mm_embeddings"),
    "model": ("execute_model",),
    "sampling": ("sample_tokens",),
}
STEERING = (
    *("begin_step", "locate", "copy_rows", "before_forward", "after_forward", "end_forward"),
    *("_choose", "commit", "end_sampling"),
)
PARTS = ("scheduler", *RUNNER, "attention", "steering rows", "steering plan")


class Profile:
    """seconds: by part of `PARTS`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._children: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """function, its own time added to the part's."""
        import torch

        wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

        def call(*args: Any, **kwargs: Any) -> Any:
            wait()
            self._children.append(0.0)
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait()
                whole = time.perf_counter() - begun
                own = whole - self._children.pop()
                self.seconds[part] += own
                if self._children:
                    self._children[-1] += whole

        return call

    @contextmanager
    def watching(self, core: Any) -> Iterator[None]:
        """Times the steps of one engine inside. core: vLLM's `EngineCore`, in this process."""
        from adaptvis_vllm.engine.attention.wrap import SteeredLayer

        undo: list[Callable[[], None]] = []

        def put(owner: Any, name: str, function: Callable[..., Any]) -> None:
            own = name in vars(owner)
            undo.append(
                partial(setattr, owner, name, vars(owner)[name])
                if own
                else partial(delattr, owner, name)
            )
            setattr(owner, name, function)

        def watch(part: str, owner: Any, *names: str) -> None:
            for name in names:
                if hasattr(owner, name):
                    put(owner, name, self.timed(part, getattr(owner, name)))

        runner = core.model_executor.driver_worker.worker.model_runner
        steering: Any = getattr(runner, "adaptvis", None)
        watch("scheduler", core.scheduler, "schedule", "update_from_output")
        for part, names in RUNNER.items():
            watch(part, runner, *names)
        if steering is not None:
            watch("steering plan", steering, *STEERING)
        layers = runner.vllm_config.compilation_config.static_forward_context
        for layer in layers.values():
            impl = getattr(layer, "impl", None)
            forward = getattr(impl, "forward", None)
            if isinstance(forward, SteeredLayer):
                watch("steering rows", forward.rows, "recompute")
            watch("attention", impl, "forward")
        try:
            yield
        finally:
            for step in reversed(undo):
                step()
