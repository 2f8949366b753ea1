"""Scores of every setting, from a sweep's table alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.table import SweepTable
from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.params import AdaptVis, Off, ScalingVis, SteeringParams

# Confidences closer than this are not told apart: rounding moves them about as much from one
# batch to the next, and an answer must not hang on that.
GAP = 1e-5
_EQUAL = 1e-9  # sums of scores that differ by less are ties


def thresholds(confidence: NDArray[np.float32]) -> NDArray[np.float64]:
    """One threshold in every gap between observed confidences.

    confidence: [Q] float32. Returns [K] float64, ascending, K < Q: in each gap the number with
    the fewest decimals in the gap's middle half. So each divides the questions in another way,
    with questions on both sides.
    """
    values = np.unique(confidence).astype(np.float64)
    low, high = values[:-1], values[1:]
    wide = high - low > GAP
    low, high = low[wide], high[wide]
    middle, quarter = (low + high) / 2, (high - low) / 4
    out = middle.copy()
    for decimals in range(9, 0, -1):
        short = np.round(middle, decimals)
        out = np.where(np.abs(short - middle) <= quarter, short, out)
    return out


def adaptive_sums(
    scores: NDArray[np.float64], confidence: NDArray[np.float32], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Summed scores of every adaptive setting with one measure.

    scores: [Q, A]. confidence: [Q] float32. at: [K] thresholds.
    Returns [K, A, A]: threshold, alpha_low, alpha_high.
    """
    order = np.argsort(confidence, kind="stable")
    below = np.zeros((len(scores) + 1, scores.shape[1]))
    np.cumsum(scores[order], axis=0, out=below[1:])
    split = np.searchsorted(confidence[order], at.astype(np.float32), side="left")
    low = below[split]
    return low[:, :, None] + (below[-1] - low)[:, None, :]


@dataclass(frozen=True)
class Best:
    """The best settings of some questions, judged by these questions.

    scaling: index of its alpha. measure, threshold, low, high: the adaptive one's, low and
    high as indices of alphas; measure is "" if no confidence tells questions apart.
    """

    scaling: int
    measure: str
    threshold: float
    low: int
    high: int

    def steering(self, family: str, table: SweepTable) -> SteeringParams:
        """The best of a family: "base", "scaling" or "adaptive"; `Off` where that is alpha = 1
        or where there is none. table: where the alphas come from."""
        alphas = table.alphas
        common = table.where
        if family == "adaptive" and not self.measure:
            return Off()
        if family == "base" or (family == "scaling" and self.scaling == table.plain):
            return Off()
        if family == "scaling":
            return ScalingVis(float(alphas[self.scaling]), **common)
        low, high = float(alphas[self.low]), float(alphas[self.high])
        return AdaptVis(low, high, self.threshold, confidence=self.measure, **common)


def best(
    scores: NDArray[np.float64],
    confidences: Mapping[str, NDArray[np.float32]],
    alphas: NDArray[np.float64],
) -> Best:
    """The settings with the highest score.

    scores: [Q, A]. confidences: measure -> [Q] float32. alphas: [A].
    Of equals the one whose alphas are nearest to 1 (as factors), then the first measure, then
    the threshold in the middle of the widest plateau.
    """
    away = np.abs(np.log(alphas))
    totals = scores.sum(axis=0)
    top = np.nonzero(totals >= totals.max() - _EQUAL)[0]
    scaling = int(top[np.argmin(away[top])])
    pairs = away[:, None] + away[None, :]
    same = np.eye(len(alphas), dtype=bool)  # alpha_low = alpha_high is no adaptive setting
    found = []
    for number, kind in enumerate(k for k in CONFIDENCES if k in confidences):
        at = thresholds(confidences[kind])
        if not len(at) or len(alphas) < 2:
            continue
        sums = adaptive_sums(scores, confidences[kind], at)
        sums[:, same] = -1
        # [A, A], whatever the threshold
        cells = sums.max(axis=0)
        tied = cells >= cells.max() - _EQUAL
        low, high = np.unravel_index(np.argmin(np.where(tied, pairs, np.inf)), pairs.shape)
        line = sums[:, low, high] >= cells.max() - _EQUAL
        key = (-round(float(cells.max()), 6), float(pairs[low, high]), number)
        found.append((key, kind, float(at[_middle(line)]), int(low), int(high)))
    if not found:
        return Best(scaling, "", 0.0, scaling, scaling)
    return Best(scaling, *min(found)[1:])


def _middle(line: NDArray[np.bool_]) -> int:
    """Index of the middle of the longest run of True. line: [K] bool, not all False."""
    edges = np.diff(np.concatenate([[0], line.astype(np.int8), [0]]))
    starts, ends = np.nonzero(edges == 1)[0], np.nonzero(edges == -1)[0]
    longest = int(np.argmax(ends - starts))
    return int((starts[longest] + ends[longest] - 1) // 2)
