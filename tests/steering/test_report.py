"""One rule for the branch: what metrics, batch jobs and the device say is the same."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from adaptvis_vllm import AdaptVis, Off, ScalingVis
from adaptvis_vllm.engine.scheduling import RequestSteering
from adaptvis_vllm.steering.policy import choose_alpha
from adaptvis_vllm.steering.report import NO_IMAGE, Report, adaptive_branch

LOW, HIGH = 0.5, 1.5


def on_the_device(confidence: float, threshold: float, decimals: int | None) -> str:
    """By `choose_alpha`, with alphas that tell."""
    alpha = choose_alpha(
        *(
            torch.tensor([value], dtype=torch.float32)
            for value in (confidence, LOW, HIGH, threshold)
        ),
        torch.tensor([-1 if decimals is None else decimals]),
    )
    return "low" if alpha.item() == LOW else "high"


@pytest.mark.parametrize("alphas", [(LOW, HIGH), (HIGH, LOW), (1.0, 1.0)])
@pytest.mark.parametrize("decimals", [None, 0, 1, 2, 6])
def test_the_branch_is_the_device_s(alphas: tuple[float, float], decimals: int | None) -> None:
    """Of confidences at, just below and just above the threshold, ties of rounding among them."""
    rng = random.Random(0)
    seen = set()
    for _ in range(300):
        threshold = round(rng.random(), rng.choice([1, 2, 6]))
        near = np.float32(threshold + rng.choice([0, 0, 0.005, -0.005, 0.05, -0.3]))
        steps = rng.choice([0, 1, -1])
        near = np.nextafter(near, np.float32(steps * 9)) if steps else near
        confidence = float(np.clip(near, 0, 1))
        expected = on_the_device(confidence, threshold, decimals)
        seen.add(expected)
        params = AdaptVis(*alphas, threshold, confidence_decimals=decimals)
        steering = RequestSteering(params, last=9, image=True, confidence=confidence)
        steering.alpha = params.alpha_low if expected == "low" else params.alpha_high
        carried: dict[str, Any] = steering.carried(None)["adaptvis"]
        assert carried.pop("branch") == expected
        assert adaptive_branch(carried, params) == expected
    assert seen == {"low", "high"}


def test_the_other_branches() -> None:
    assert Report("scaling", alpha=2.0, steered=True).branch(ScalingVis(2.0)) == "given"
    assert Report("off", reason="mode off").branch(Off()) == "none"
    plain = Report("adaptive", reason=NO_IMAGE)
    assert plain.branch(AdaptVis(1, 1, 0.5)) == "none"
    assert adaptive_branch(plain.as_dict(), AdaptVis(1, 1, 0.5)) == ""
    assert adaptive_branch(None, None) == ""
