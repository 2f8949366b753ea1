"""policy.py against plain Python arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.policy import KIND_IDS, choose_alpha, confidence, confidences, rounded


def plain_confidence(row: list[float], kind: str) -> float:
    peak = max(row)
    weights = [math.exp(x - peak) for x in row]
    p = sorted((w / sum(weights) for w in weights), reverse=True)
    if kind == "max_prob":
        return p[0]
    if kind == "margin":
        return p[0] - p[1]
    return 1 + sum(x * math.log(x) for x in p if x > 0) / math.log(len(row))


@pytest.mark.parametrize("kind", CONFIDENCES)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_confidence(kind: str, spread: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(5, 123, generator=generator) * spread).to(dtype)
    out = confidence(logits, kind)
    assert out.dtype == torch.float32
    assert out.shape == (5,)
    expected = [plain_confidence(row, kind) for row in logits.tolist()]
    assert out.tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("kind", CONFIDENCES)
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, 0.0], {"max_prob": 0.5, "margin": 0.0, "entropy": 0.0}),
        ([9e4, 0.0, -9e4], {"max_prob": 1.0, "margin": 1.0, "entropy": 1.0}),
        ([3.0], {"max_prob": 1.0, "margin": 1.0, "entropy": 1.0}),
        ([1.0, -math.inf, -math.inf], {"max_prob": 1.0, "margin": 1.0, "entropy": 1.0}),
    ],
    ids=["even", "certain", "one-token", "masked"],
)
def test_confidence_at_the_ends(kind: str, row: list[float], expected: dict[str, float]) -> None:
    assert confidence(torch.tensor([row]), kind).item() == pytest.approx(expected[kind], abs=1e-6)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="max_prob, margin, entropy, not 'variance'"):
        confidence(torch.zeros(1, 4), "variance")


def test_mixed_kinds_equal_single_kinds() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    kinds = ["entropy", "margin", "max_prob", "max_prob", "entropy", "margin"]
    ids = torch.tensor([KIND_IDS[k] for k in kinds])
    out = confidences(logits, ids, set(kinds))
    expected = torch.cat([confidence(logits[i : i + 1], k) for i, k in enumerate(kinds)])
    assert torch.equal(out, expected)
    assert torch.equal(confidences(logits, ids * 0, {"max_prob"}), confidence(logits, "max_prob"))


@pytest.mark.parametrize("decimals", range(7))
def test_rounding_is_pythons_and_numpys(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    # Halves and their float32 neighbours are where roundings differ.
    halves = (rng.integers(0, 10**decimals, 400) + 0.5) / 10**decimals
    near = np.float32(halves)
    plain = np.float32(np.arange(9) / 8)  # 0 and 1 among them
    zero, one = np.float32(0), np.float32(1)
    values = np.concatenate(
        [
            near,
            np.nextafter(near, zero),
            np.nextafter(near, one),
            plain,
        ]
    )
    conf = torch.from_numpy(values)
    out = rounded(conf, torch.full_like(conf, decimals, dtype=torch.int32))
    floats: list[float] = values.astype(np.float64).tolist()
    assert out.tolist() == [float(np.float32(round(v, decimals))) for v in floats]
    assert out.tolist() == [float(np.float32(np.round(v, decimals))) for v in floats]


def test_no_rounding() -> None:
    conf = torch.tensor([0.123456789, 1.0])
    assert torch.equal(rounded(conf, torch.tensor([-1, -1])), conf)


@pytest.mark.parametrize(
    ("conf", "threshold", "decimals", "low"),
    [
        (0.39, 0.4, -1, True),
        (0.4, 0.4, -1, False),
        (0.41, 0.4, -1, False),
        (0.396, 0.4, -1, True),
        (0.396, 0.4, 2, False),  # rounds to 0.40
        (0.394, 0.4, 2, True),
        (0.35, 0.35, 2, False),
        (0.3, 0.3, 2, False),
        (0.2, 0.2, 2, False),
        (0.125, 0.13, 2, True),  # half to even: 0.12
        (0.375, 0.38, 2, False),  # half to even: 0.38
        (0.6, 0.5, 0, False),
        (0.5, 0.5, 0, True),  # half to even: 0
        (0.0, 0.0, -1, False),
        (1.0, 1.0, -1, False),
        (0.999, 1.0, -1, True),
    ],
)
def test_choice(conf: float, threshold: float, decimals: int, low: bool) -> None:
    alpha = choose_alpha(
        torch.tensor([conf]),
        torch.tensor([0.5]),
        torch.tensor([1.5]),
        torch.tensor([threshold]),
        torch.tensor([decimals]),
    )
    assert alpha.tolist() == [0.5 if low else 1.5]
    assert alpha.dtype == torch.float32


def test_choice_is_per_row() -> None:
    alpha = choose_alpha(
        torch.tensor([0.396, 0.396, 0.2]),
        torch.tensor([0.1, 0.2, 0.3]),
        torch.tensor([1.1, 1.2, 1.3]),
        torch.tensor([0.4, 0.4, 0.4]),
        torch.tensor([-1, 2, 2]),
    )
    assert torch.equal(alpha, torch.tensor([0.1, 1.2, 0.3]))
