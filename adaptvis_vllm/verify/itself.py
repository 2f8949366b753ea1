"""Step `itself`: what must be equal whatever the model, without a reference.

Two ways of asking that mean the same may differ by rounding only. In fp32 they give the same
tokens; in 16 bit their log-probabilities lie within the noise (`exact.limit`): what unsteered
answers differ by, asked alone and in a full batch, or what they differ by from the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adaptvis_vllm.steering.params import AdaptVis, ScalingVis
from adaptvis_vllm.verify.answers import Answer, largest, of_engine, same
from adaptvis_vllm.verify.checks import Check
from adaptvis_vllm.verify.exact import HIGH, LOW, limit
from adaptvis_vllm.verify.questions import Ask, draw, steered

STEP = "itself"
TOKENS = 4
LONG = 16  # tokens of an answer that is preempted
PREEMPTED_AFTER = (1, 3, 9)  # steps
FEW = 8  # questions that are asked alone


def bystanders(engine: Any, asks: Sequence[Ask]) -> list[Answer]:
    """Unsteered answers, each alone: what the engine without the plugin is asked for."""
    engine.llm.reset_prefix_cache()
    return of_engine(engine, asks[:FEW], TOKENS, alone=True)


def run(
    engine: Any, asks: Sequence[Ask], vanilla: Sequence[Answer], noise: float, dtype: str
) -> list[Check]:
    """All checks. asks: unsteered questions. vanilla: of `bystanders` without the plugin.
    noise: of unsteered answers against the reference; 0 where there is none."""
    few = list(asks[:FEW])
    adaptive = AdaptVis(LOW, HIGH, 0.5)
    crowd = [
        *few,
        *steered(asks[FEW:], ScalingVis(LOW)),
        *steered(asks[FEW:], adaptive),
    ]
    plain = fresh(engine, asks)
    among = fresh(engine, crowd)[: len(few)]
    alone = bystanders(engine, asks)
    noise = max(noise, largest(alone, plain[:FEW]))

    def check(name: str, mine: Sequence[Answer], other: Sequence[Answer], more: str = "") -> Check:
        seen, most = largest(mine, other), limit(noise, dtype)
        agreed = same(mine, other)
        passed = seen <= most and (agreed == len(mine) or dtype != "float32")
        figure = f"{agreed} of {len(mine)} the same; {seen:.1e}, at most {most:.1e}"
        return Check(STEP, name, passed, figure + more)

    scaled = fresh(engine, steered(asks, ScalingVis(HIGH)))
    equal = AdaptVis(HIGH, HIGH, 0.5)
    by_choice = fresh(engine, steered(asks, adaptive))
    checks = [
        check("alpha 1 = unsteered", fresh(engine, steered(asks, ScalingVis(1.0))), plain),
        check("adaptive, low = high = scaling", fresh(engine, steered(asks, equal)), scaled),
        check(
            "alone = in a full batch",
            fresh(engine, steered(few, adaptive), alone=True),
            by_choice[:FEW],
        ),
        check("unsteered beside steered = without plugin", among, vanilla),
        _cached(engine, steered(few, adaptive), by_choice[:FEW], check),
        *_two_images(engine, check),
        _preempted(engine, asks, check),
    ]
    return checks


def fresh(
    engine: Any, asks: Sequence[Ask], tokens: int = TOKENS, *, alone: bool = False
) -> list[Answer]:
    """From an empty prefix cache."""
    engine.llm.reset_prefix_cache()
    return of_engine(engine, asks, tokens, alone=alone)


def _cached(
    engine: Any, asks: Sequence[Ask], other: Sequence[Answer], check: Callable[..., Check]
) -> Check:
    name = "prefix cache on = off"
    if not engine.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching:
        return Check(STEP, name, None, "not tried: prefix caching is off")
    fresh(engine, asks)
    again = of_engine(engine, asks, TOKENS)
    hits = sum(answer.cached > 0 for answer in again)
    if not hits:
        size = engine.llm.llm_engine.vllm_config.cache_config.block_size
        return Check(STEP, name, None, f"not tried: prompts have no full block of {size}")
    return check(name, again, other, f"; {hits} hits")


def _two_images(engine: Any, check: Callable[..., Check]) -> Iterator[Check]:
    model = engine.llm.llm_engine.vllm_config.model_config.multimodal_config
    if model.get_limit_per_prompt("image") < 2:
        yield Check(STEP, "two images", None, "not tried: one image a prompt is allowed")
        return
    asks = draw(FEW, seed=1, images=2)
    plain = fresh(engine, asks)
    yield check(
        "two images: alpha 1 = unsteered", fresh(engine, steered(asks, ScalingVis(1.0))), plain
    )
    yield check(
        "two images: low = high = scaling",
        fresh(engine, steered(asks, AdaptVis(LOW, LOW, 0.5))),
        fresh(engine, steered(asks, ScalingVis(LOW))),
    )


def _preempted(engine: Any, asks: Sequence[Ask], check: Callable[..., Check]) -> Check:
    some = steered(asks[:FEW], AdaptVis(LOW, HIGH, 0.5))
    other = fresh(engine, some, LONG)
    engine.llm.reset_prefix_cache()
    preempted = 0

    def step(number: int) -> None:
        nonlocal preempted
        if number in PREEMPTED_AFTER:
            preempted += len(engine.scheduler.running)
            engine.llm.llm_engine.reset_prefix_cache(reset_running_requests=True)

    mine = of_engine(engine, some, LONG, after_step=step)
    name = "preempted = left alone"
    if not preempted:
        return Check(STEP, name, False, "nothing was running when it was to be preempted")
    return check(name, mine, other, f"; {preempted} preemptions")
