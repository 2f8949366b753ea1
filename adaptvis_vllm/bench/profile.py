"""Where the time of an engine's steps goes.

Timers around the functions of one live engine. Times are exclusive: what a timed function
calls that is timed too counts for that one only. On a GPU every border waits for the device,
which makes steps slower than they are unprofiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
STEERING = ("begin_step", "locate", "end_forward", "observe", "end_sampling")
PARTS = ("scheduler", *RUNNER, "attention", "steering rows", "steering plan")


class Profile:
    """Seconds by part, since the last reset."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._children: list[float] = []

    def reset(self) -> None:
        self._spent = dict.fromkeys(PARTS, 0.0)

    def seconds(self) -> dict[str, float]:
        return dict(self._spent)

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
                self._spent[part] = self._spent.get(part, 0.0) + own
                if self._children:
                    self._children[-1] += whole

        return call

    def watch_recomputation(self) -> None:
        """Before the engine is built, which keeps the functions."""
        from adaptvis_vllm.attention import wrap

        for name, function in wrap.BACKENDS.items():
            wrap.BACKENDS[name] = self.timed("steering rows", function)

    def watch(self, core: Any) -> None:
        """core: vLLM's `EngineCore`, in this process."""
        scheduler = core.scheduler
        runner = core.model_executor.driver_worker.worker.model_runner
        for name in ("schedule", "update_from_output"):
            self._wrap("scheduler", scheduler, name)
        for part, names in RUNNER.items():
            for name in names:
                if hasattr(runner, name):
                    self._wrap(part, runner, name)
        steering = getattr(runner, "adaptvis", None)
        for name in STEERING if steering is not None else ():
            self._wrap("steering plan", steering, name)
        layers = runner.vllm_config.compilation_config.static_forward_context.values()
        for layer in layers:
            if hasattr(getattr(layer, "impl", None), "forward"):
                self._wrap("attention", layer.impl, "forward")

    def _wrap(self, part: str, owner: Any, name: str) -> None:
        setattr(owner, name, self.timed(part, getattr(owner, name)))
