"""AUROC, its interval, and what the best of many heads is worth."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from adaptvis_vllm.diagnosis.auroc import (
    auroc,
    best_of_shuffled,
    cross_validated,
    interval,
    midranks,
)


def test_by_hand() -> None:
    """Right 3, 2, 2 against wrong 1, 2: 4 of 6 pairs won and 2 tied."""
    values = np.array([[3.0], [2], [2], [1], [2]])
    right = [True, True, True, False, False]
    assert auroc(values, right)[0] == pytest.approx(5 / 6)
    assert auroc(-values, right)[0] == pytest.approx(1 / 6)
    assert auroc(np.ones((5, 1)), right)[0] == 0.5
    assert midranks([[5.0], [1], [1], [9]]).ravel().tolist() == [3, 1.5, 1.5, 4]


def test_equals_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (40, 7)).astype(np.float32)
    right = rng.random(40) < 0.4
    first, second = values[right][:, None], values[~right][None]
    expected = ((first > second) + 0.5 * (first == second)).mean((0, 1))
    np.testing.assert_allclose(auroc(values, right), expected)


@pytest.mark.parametrize("right", [[True] * 4, [False] * 4])
def test_one_kind_alone_has_none(right: list[bool]) -> None:
    values = np.arange(4.0)[:, None]
    assert np.isnan(auroc(values, right)).all()
    assert np.isnan(interval(auroc(values, right), sum(right), 4 - sum(right))).all()
    assert cross_validated(values, right) is None


@pytest.mark.parametrize(("right", "wrong"), [(5, 9), (40, 12), (3, 300)])
def test_the_interval_is_what_hanleys_variance_allows(right: int, wrong: int) -> None:
    """Against a scan of all values, at the ends too."""
    z, scan = NormalDist().inv_cdf(0.975), np.linspace(0, 1, 200_001)
    more = (right + wrong) / 2 - 1
    variance = scan * (1 - scan) / (right * wrong)
    variance *= 1 + more * ((1 - scan) / (2 - scan) + scan / (1 + scan))
    for found in (0.0, 0.3, 0.5, 0.9, 1.0):
        allowed = scan[np.abs(scan - found) <= z * np.sqrt(variance)]
        low, high = interval(found, right, wrong)
        assert low == pytest.approx(allowed.min(), abs=1e-5)
        assert high == pytest.approx(allowed.max(), abs=1e-5)
    assert interval(1.0, right, wrong)[0] < 1


def test_the_interval_holds_the_truth_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    right = np.arange(70) < 30
    truth = 0.8
    gap = 2**0.5 * NormalDist().inv_cdf(truth)
    found = auroc(rng.normal(size=(70, 3000)) + gap * right[:, None], right)
    low, high = interval(found, 30, 40)
    assert 0.93 < ((low <= truth) & (truth <= high)).mean() < 0.98


def test_the_best_of_many_useless_heads_is_found_out() -> None:
    rng = np.random.default_rng(1)
    values, right = rng.normal(size=(120, 300)), rng.random(120) < 0.5
    seen = auroc(values, right).max()
    assert seen > 0.6
    held = cross_validated(values, right)
    assert held is not None
    assert held.low < 0.5 < held.high
    assert held.auroc < seen - 0.05
    assert (best_of_shuffled(values, right) >= seen).mean() > 0.05


def test_a_head_that_tells_is_found() -> None:
    rng = np.random.default_rng(2)
    values, right = rng.normal(size=(120, 300)), rng.random(120) < 0.5
    values[:, 17] += 2 * right
    held = cross_validated(values, right)
    assert held is not None
    assert next(iter(held.picks)) == 17
    assert held.low > 0.8
    assert sum(held.picks.values()) == 40
    assert (best_of_shuffled(values, right) < auroc(values, right)[17]).all()
    assert cross_validated(values, right) == held
