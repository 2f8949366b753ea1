"""Three hundred mixed requests at random: every answer equals its isolated one."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from support.engine import generate, prompt, sampling, scheduler, tokens

from adaptvis_vllm import AdaptVis, Candidates, Off, ScalingVis

REQUESTS = 320
KINDS = 60
WORDS = ("cat ", "dog table ", "left of the mug ", "red chair under ")


def random_kind(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """(prompt arguments, sampling arguments) of one kind of request."""
    image = rng.choice([*range(8), None])
    text = rng.choice(WORDS) * rng.randrange(30)
    if image is not None and rng.random() < 0.3:
        text = rng.choice(WORDS) * rng.choice((4, 12, 20))  # prefixes shared between kinds
    common: dict[str, Any] = {}
    if rng.random() < 0.2:
        common["layers"] = rng.choice(["0", "1-2", "3", "0,2"])
    elif rng.random() < 0.3:
        common["heads"] = rng.choice(["0-3.1", "1.0-2,2.*", "3.3", "0.0,2-3.2"])
    if rng.random() < 0.2:
        common["span"] = "interval"
    if rng.random() < 0.3:
        common["rule"] = rng.choice(("add_log", "pai"))
    if rng.random() < 0.1:
        common["images"] = "0"
    generated = {"rows": rng.choice(("last", "last", "generated"))}
    alphas = (0.3, 0.5, 0.8, 1.2, 2.0, 3.0)
    steering = rng.choice(
        [
            None,
            Off(),
            ScalingVis(rng.choice(alphas), **common, **generated),
            Candidates(rng.sample(alphas, 2), **common),
            AdaptVis(
                *(rng.choice(alphas), rng.choice(alphas), rng.choice((0, 0.4, 1))),
                **common,
                **generated,
            ),
            AdaptVis(
                *(0.5, 2.0, 0.3),
                confidence=rng.choice(("margin", "entropy")),
                confidence_decimals=2,
                options=rng.choice((None, ("Left", "Right"), ("cat", "dog", "mug"))),
                **generated,
            ),
        ]
    )
    options: dict[str, Any] = {"max_tokens": rng.choice((1, 2, 5, 9, 40))}
    if rng.random() < 0.3:
        options |= {"temperature": 0.9, "seed": rng.randrange(100)}
    if rng.random() < 0.2:
        options["repetition_penalty"] = 1.3
    return {"image": image, "text": text}, {"steering": steering, **options}


def said(output: Any) -> tuple[Any, ...]:
    """Tokens, alpha, and the tokens of candidates."""
    report = output.adaptvis or {"alpha": None}
    found = [one["token_id"] for one in report.get("candidates", ())]
    return tokens(output), report["alpha"], report.get("option"), found


@pytest.mark.parametrize("seed", [1, 2])
def test_random_traffic(engine: Any, seed: int) -> None:
    rng = random.Random(seed)
    kinds = [random_kind(rng) for _ in range(KINDS)]
    expected = []
    for item, options in kinds:
        assert engine.reset_prefix_cache()
        (output,) = generate(engine, [prompt(**item)], sampling(**options))
        expected.append(said(output))
    assert engine.reset_prefix_cache()

    sched = scheduler(engine)
    budget = sched.max_num_scheduled_tokens
    running: dict[str, int] = {}
    internal: dict[str, str] = {}
    sent = aborted = preempted = checked = 0
    try:
        while sent < REQUESTS // 2 or running:
            while sent < REQUESTS // 2 and rng.random() < 0.6:
                kind = rng.randrange(KINDS)
                item, options = kinds[kind]
                (full,) = engine.enqueue([prompt(**item)], sampling(**options), use_tqdm=False)
                name = full.partition("-")[0]
                running[name], internal[name] = kind, full
                sent += 1
            if running and rng.random() < 0.04:
                victim = rng.choice(list(running))
                engine.llm_engine.abort_request([internal[victim]], internal=True)
                del running[victim]
                aborted += 1
            if sched.running and rng.random() < 0.08:
                sched._preempt_request(sched.running.pop(), time.monotonic())
                preempted += 1
            sched.max_num_scheduled_tokens = rng.choice((budget, 100, 33, 17))
            for output in engine.llm_engine.step():
                kind = running.pop(output.request_id, None)
                if output.finished and kind is not None:
                    assert said(output) == expected[kind], kinds[kind]
                    checked += 1
    finally:
        sched.max_num_scheduled_tokens = budget
    assert checked + aborted == sent
    assert checked >= 140
    assert aborted
    assert preempted
