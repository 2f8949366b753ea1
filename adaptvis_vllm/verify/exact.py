"""Step `exact`: the engine's answers against plain transformers on the same device.

In fp32 they are the same tokens. In 16 bit rounding decides some tokens, so log-probabilities are
compared with the reference in fp32: steered ones must lie no further from it than the noise, by
the factor `NOISE`. The noise is what unsteered answers show, and what the reference itself shows,
rounded as the engine rounds (16 bit; TF32 on a GPU), under the same steering: alpha multiplies
the rounding of the scores too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from adaptvis_vllm.steering.params import AdaptVis, ScalingVis, SteeringParams
from adaptvis_vllm.verify.answers import Answer, largest, same
from adaptvis_vllm.verify.checks import Check

STEP = "exact"
NOISE = 1.5
# Differences below are rounding, whatever the noise was: of log-probabilities about 10 large.
FLOOR = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
LOW, HIGH = 0.5, 1.5
UNSTEERED, ADAPTIVE = "unsteered", "adaptive"
BELOW, ABOVE = f"scaling {LOW:g}", f"scaling {HIGH:g}"
GIVEN: dict[str, SteeringParams | None] = {
    UNSTEERED: None,
    BELOW: ScalingVis(LOW),
    ABOVE: ScalingVis(HIGH),
}
Answers = Mapping[str, Sequence[Answer]]  # by way of asking, in the questions' order


def ways(threshold: float) -> dict[str, SteeringParams | None]:
    """How every question is asked."""
    return GIVEN | {ADAPTIVE: AdaptVis(LOW, HIGH, threshold)}


def threshold(unsteered: Sequence[Answer]) -> float:
    """In the widest gap between two confidences of the middle half, so that rounding decides
    nothing and both alphas are chosen. unsteered: the reference's answers."""
    found = sorted(map(confidence, unsteered))
    middle = found[len(found) // 4 : 3 * len(found) // 4]
    gap, below = max((b - a, a) for a, b in pairwise(middle))
    return below + gap / 2


def confidence(answer: Answer) -> float:
    """The largest probability of the first token."""
    return math.exp(max(answer.logprobs[0].values()))


def with_choice(
    given: Mapping[str, list[Answer]], unsteered: Sequence[Answer], threshold: float
) -> dict[str, list[Answer]]:
    """The reference's answers with those of adaptive steering: whichever alpha is chosen.

    given: its answers by `GIVEN`. unsteered: whose confidences choose.
    """
    chosen = [BELOW if confidence(answer) < threshold else ABOVE for answer in unsteered]
    return dict(given) | {ADAPTIVE: [given[way][i] for i, way in enumerate(chosen)]}


def limit(noise: float, dtype: str) -> float:
    """The largest difference that noise explains."""
    return max(NOISE * noise, FLOOR[dtype])


def compare(
    mine: Answers, reference: Answers, rounded: Answers | None, dtype: str
) -> tuple[list[Check], float]:
    """The checks, and the noise of unsteered answers.

    reference: in fp32. rounded: the reference in the engine's arithmetic; None where that is fp32.
    """
    checks = [_prompts(mine, reference)]
    noise = largest(mine[UNSTEERED], reference[UNSTEERED])
    alphas = [(a.alpha, b.alpha) for w in mine for a, b in zip(mine[w], reference[w], strict=True)]
    agreed = sum(a == b for a, b in alphas)
    checks.append(Check(STEP, "alpha chosen", agreed == len(alphas), f"{agreed} of {len(alphas)}"))
    checks.append(_confidences(mine, reference, noise, dtype))
    checks.append(_effect(mine, noise, dtype))
    for way, answers in mine.items():
        agreed, count = same(answers, reference[way]), len(answers)
        exact = agreed == count if dtype == "float32" else None
        checks.append(Check(STEP, f"{way}: the same tokens", exact, f"{agreed} of {count}"))
    for way, answers in mine.items():
        for name, tokens in (("first token", 1), ("all tokens", None)):
            seen = largest(answers, reference[way], tokens)
            allowed = largest(mine[UNSTEERED], reference[UNSTEERED], tokens)
            own = largest(rounded[way], reference[way], tokens) if rounded else 0.0
            most = limit(max(allowed, own), dtype)
            figure = f"{seen:.1e}, at most {most:.1e} (unsteered {allowed:.1e}"
            figure += f", the reference itself {own:.1e})" if rounded else ")"
            passed = seen <= most if way != UNSTEERED else None
            checks.append(Check(STEP, f"{way}: log-probabilities, {name}", passed, figure))
    return checks, noise


def _prompts(mine: Answers, reference: Answers) -> Check:
    pairs = list(zip(mine[UNSTEERED], reference[UNSTEERED], strict=True))
    agreed = sum(a.prompt == b.prompt for a, b in pairs)
    figure = f"{agreed} of {len(pairs)}"
    return Check(STEP, "prompt tokens, placeholders expanded", agreed == len(pairs), figure)


def _confidences(mine: Answers, reference: Answers, noise: float, dtype: str) -> Check:
    """Of adaptive requests, against the unsteered reference's."""
    pairs = zip(mine[ADAPTIVE], reference[UNSTEERED], strict=True)
    seen = max(abs((a.report or {})["confidence"] - confidence(b)) for a, b in pairs)
    most = limit(noise, dtype)
    return Check(STEP, "confidence", seen <= most, f"{seen:.1e}, at most {most:.1e}")


def _effect(mine: Answers, noise: float, dtype: str) -> Check:
    """Steering that does nothing would agree with itself everywhere."""
    moved = largest(mine[BELOW], mine[UNSTEERED])
    told = all(
        answer.report is not None and answer.report["steered"]
        for way, answers in mine.items()
        if way != UNSTEERED
        for answer in answers
    )
    figure = f"moves log-probabilities by {moved:.1e}; reported as steered: {told}"
    return Check(STEP, "steering has an effect", told and moved > limit(noise, dtype), figure)
