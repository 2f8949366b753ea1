"""Step `graphs`: how steps run, FULL, PIECEWISE or eager (NONE), with and without steered rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from adaptvis_vllm.steering.params import AdaptVis, ScalingVis
from adaptvis_vllm.verify.answers import of_engine
from adaptvis_vllm.verify.checks import Check
from adaptvis_vllm.verify.questions import Ask, steered

STEP = "graphs"
TOKENS = 8
Modes = list[tuple[bool, str, int]]  # a step: whether it has a steered row, its mode, its tokens


def modes(engine: Any, asks: Sequence[Ask]) -> Modes | None:
    """The steps in which these are answered; None where another process runs them."""
    executor = engine.core.engine_core.model_executor
    worker = getattr(executor, "driver_worker", None)
    if worker is None:
        return None
    runner = worker.worker.model_runner
    manager = getattr(runner, "cudagraph_dispatcher", None) or runner.cudagraph_manager
    steering = getattr(runner, "adaptvis", None)
    dispatch, execute = manager.dispatch, runner.execute_model
    last: list[tuple[bool, str, int]] = []
    seen: Modes = []

    def dispatched(*args: Any, **kwargs: Any) -> Any:
        found = dispatch(*args, **kwargs)
        mode, described = found if isinstance(found, tuple) else (found.cg_mode, found)
        rows = steering is not None and steering.plan is not None
        last[:] = [(rows, mode.name, described.num_tokens)]
        return found

    def executed(*args: Any, **kwargs: Any) -> Any:
        last.clear()
        result = execute(*args, **kwargs)
        seen.extend(last)
        return result

    manager.dispatch, runner.execute_model = dispatched, executed
    engine.llm.reset_prefix_cache()
    try:
        of_engine(engine, asks, TOKENS)
    finally:
        del manager.dispatch, runner.execute_model
    return seen


def run(engine: Any, asks: Sequence[Ask], vanilla: Modes | None) -> list[Check]:
    """vanilla: of `modes` without the plugin, for the same unsteered questions."""
    mine = modes(engine, asks)
    if mine is None or vanilla is None:
        return [Check(STEP, "modes of steps", None, "not seen: workers are other processes")]
    half = len(asks) // 2
    mixed = modes(
        engine,
        [
            *asks[:half],
            *steered(asks[half:], AdaptVis(0.5, 1.5, 0.5)),
            *steered(asks[half:], ScalingVis(0.5)),
        ],
    )
    assert mixed is not None
    rows = Counter(mode for steers, mode, _ in mixed if steers)
    others = Counter(mode for steers, mode, _ in mixed if not steers)
    config = engine.llm.llm_engine.vllm_config
    full = any(mode == "FULL" for _, mode, _ in vanilla)
    is_async = bool(config.scheduler_config.async_scheduling)
    return [
        Check(STEP, "unsteered traffic runs plain vLLM's steps", mine == vanilla, _counts(mine)),
        Check(
            STEP,
            "no step with a steered row replays a FULL graph",
            bool(rows) and not rows["FULL"],
            _text(rows),
        ),
        Check(
            STEP,
            "decodes beside them stay FULL" if full else "steps without one",
            others["FULL"] > 0 if full else None,
            _text(others),
        ),
        Check(STEP, "asynchronous scheduling", None, "on" if is_async else "off"),
    ]


def _counts(found: Modes) -> str:
    return _text(Counter(mode for _, mode, _ in found))


def _text(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {mode}" for mode, count in sorted(counts.items())) or "no step"
