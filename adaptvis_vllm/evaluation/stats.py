"""Bootstrap confidence intervals, paired between methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES = 10_000
LEVEL = 0.95
CHUNK = 500  # resamples at once: [CHUNK, N] indices in memory


@dataclass(frozen=True)
class Interval:
    """A figure and the percentile interval that holds it with probability `LEVEL`."""

    value: float
    low: float
    high: float


def means(right: Any, *, samples: int = SAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Accuracies of resamples with replacement, the same resamples for every method.

    right: [M, N] bool, M methods on the same N questions. Returns [samples, M].
    ValueError for no questions.
    """
    table = np.atleast_2d(np.asarray(right, dtype=np.float64))
    methods, count = table.shape
    if not count:
        raise ValueError("there are no questions to resample")
    rng = np.random.default_rng(seed)
    out = np.empty((samples, methods))
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        # How often each question is drawn is all that a mean needs.
        draws = rng.multinomial(count, np.full(count, 1 / count), size=size)
        out[start : start + size] = draws @ table.T / count
    return out


def interval(right: Any, *, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """Of the accuracy. right: [N] bool."""
    return _percentiles(float(np.mean(right)), means(right, samples=samples, seed=seed)[:, 0])


def intervals(values: Any, *, samples: int = SAMPLES, seed: int = 0) -> list[Interval]:
    """Of the mean of each of [M, N] numbers on the same questions, under the same resamples."""
    table = np.asarray(values, dtype=np.float64)
    drawn = means(table, samples=samples, seed=seed)
    return [_percentiles(float(own.mean()), drawn[:, n]) for n, own in enumerate(table)]


def paired(base: Any, other: Any, *, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """Of accuracy(other) - accuracy(base) on the same questions. base, other: [N] bool."""
    table = np.stack([np.asarray(base, dtype=np.float64), np.asarray(other, dtype=np.float64)])
    drawn = means(table, samples=samples, seed=seed)
    return _percentiles(float(np.mean(table[1]) - np.mean(table[0])), drawn[:, 1] - drawn[:, 0])


def _percentiles(value: float, drawn: NDArray[np.float64]) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
