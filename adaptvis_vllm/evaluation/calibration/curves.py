"""What the plots show, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.calibration.grid import adaptive_sums, thresholds
from adaptvis_vllm.evaluation.table import SweepTable

BINS = 10  # of a reliability curve, each with as many questions


def over_threshold(
    table: SweepTable, measure: str, low: int, high: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy of one pair of alphas (indices) over the threshold.

    Returns thresholds [K], accuracies [K], and the share of questions below each [K].
    """
    confidence = table.confidences[measure]
    at = thresholds(confidence)
    sums = adaptive_sums(table.scores[:, [low, high]], confidence, at)[:, 0, 1]
    below = np.searchsorted(np.sort(confidence), at.astype(np.float32), side="left")
    return at, sums / len(table.ids), below / len(table.ids)


@dataclass(frozen=True)
class RiskCoverage:
    """coverage, risk: [Q]; risk is the share of wrong answers among the most confident
    coverage * Q questions. area: mean risk, 0 at best."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]

    @property
    def area(self) -> float:
        return float(self.risk.mean())


def risk_coverage(table: SweepTable, measure: str) -> RiskCoverage:
    """Of the unsteered answers. Questions of equal confidence count as one group."""
    confidence = table.confidences[measure]
    wrong = 1 - table.scores[:, table.plain]
    _, group = np.unique(-confidence, return_inverse=True)
    in_group = np.bincount(group)
    order = np.argsort(group, kind="stable")
    mean_wrong = (np.bincount(group, wrong) / in_group)[group[order]]
    count = np.arange(1, len(wrong) + 1)
    return RiskCoverage(count / len(wrong), np.cumsum(mean_wrong) / count)


@dataclass(frozen=True)
class Reliability:
    """Of B bins with about as many questions each: mean confidence and accuracy [B], and how
    many there are [B]. error: their mean distance, weighted, that is the expected calibration
    error."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        away = np.abs(self.confidence - self.accuracy)
        return float((away * self.count).sum() / self.count.sum())


def reliability(table: SweepTable, measure: str = "max_prob") -> Reliability:
    """Of the unsteered answers."""
    order = np.argsort(table.confidences[measure], kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    return Reliability(
        np.array([table.confidences[measure][p].mean(dtype=np.float64) for p in parts]),
        np.array([table.scores[p, table.plain].mean() for p in parts]),
        np.array([len(p) for p in parts]),
    )
