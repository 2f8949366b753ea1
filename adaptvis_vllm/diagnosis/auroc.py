"""AUROC: how well a number tells right answers from wrong ones.

The probability that a right answer's number is above a wrong one's, ties counted half
(Mann-Whitney). Its interval is Newcombe's method 5 (Statistics in Medicine 25, 2006, 559-573): the
values that Hanley and McNeil's variance (Radiology 143, 1982) puts within 1.96 deviations of what
was seen. It stays in [0, 1] and has a width also where right and wrong are separate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.stats import LEVEL

Array = NDArray[np.float64]
REPEATS = 20  # ways to halve the questions
SHUFFLES = 1000
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def midranks(values: Any) -> Array:
    """[Q, N]: the rank of each value in its column, from 1; equal ones share their mean rank."""
    values = np.asarray(values)
    out = np.empty(values.shape)
    for column, own in enumerate(values.T):
        ordered = np.sort(own)
        low, high = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
        out[:, column] = (low + high + 1) / 2
    return out


def auroc(values: Any, right: Any) -> Array:
    """[N], NaN where all answers are right or all wrong. values: [Q, N]. right: [Q] bool."""
    return _from_ranks(midranks(values), np.asarray(right, bool)[None])[0]


def interval(found: Any, right: int, wrong: int) -> tuple[Array, Array]:
    """(low, high) of AUROCs of any shape, of so many right and wrong answers; NaN stays NaN."""
    found = np.asarray(found, np.float64)
    if not right or not wrong:
        return np.full_like(found, np.nan), np.full_like(found, np.nan)
    more = (right + wrong) / 2 - 1

    def near(at: Array) -> NDArray[np.bool_]:
        spread = 1 + more * (1 - at) / (2 - at) + more * at / (1 + at)
        return (found - at) ** 2 <= _Z**2 * at * (1 - at) * spread / (right * wrong)

    ends = []
    for end in (0.0, 1.0):
        out, within = np.full_like(found, end), found.copy()
        for _ in range(50):
            middle = (out + within) / 2
            good = near(middle)
            within, out = np.where(good, middle, within), np.where(good, out, middle)
        ends.append(np.where(np.isnan(found), np.nan, within))
    return ends[0], ends[1]


@dataclass(frozen=True)
class Held:
    """The best of N columns, chosen on one half of the questions and judged on the other.

    auroc: mean over the halves and `REPEATS` ways to halve them. low, high: `interval` of it for
    all questions. picks: how often each column was chosen, most often first.
    """

    auroc: float
    low: float
    high: float
    picks: Mapping[int, int]


def cross_validated(values: Any, right: Any, seed: int = 0) -> Held | None:
    """None where a half would have no right or no wrong answer. values: [Q, N]. right: [Q] bool.

    Right and wrong answers are halved each for themselves.
    """
    values, right = np.asarray(values), np.asarray(right, bool)
    kinds = [np.flatnonzero(right), np.flatnonzero(~right)]
    if min(map(len, kinds)) < 2:
        return None
    rng = np.random.default_rng(seed)
    found, picks = [], np.zeros(values.shape[1], int)
    for _ in range(REPEATS):
        half = np.zeros(len(right), bool)
        for kind in kinds:
            half[rng.permutation(kind)[: len(kind) // 2]] = True
        for chosen_on in (half, ~half):
            best = int(auroc(values[chosen_on], right[chosen_on]).argmax())
            picks[best] += 1
            rest = ~chosen_on
            found.append(auroc(values[rest][:, [best]], right[rest])[0])
    mean = float(np.mean(found))
    low, high = interval(mean, len(kinds[0]), len(kinds[1]))
    often = sorted(np.flatnonzero(picks).tolist(), key=lambda column: -picks[column])
    return Held(mean, float(low), float(high), {column: int(picks[column]) for column in often})


def best_of_shuffled(values: Any, right: Any, seed: int = 0) -> Array:
    """[SHUFFLES]: the best column's AUROC after right and wrong were dealt out anew by chance."""
    ranks, right = midranks(values), np.asarray(right, bool)
    rng = np.random.default_rng(seed)
    out = np.empty(SHUFFLES)
    for start in range(0, SHUFFLES, 100):
        dealt = np.stack([rng.permutation(right) for _ in range(100)])
        out[start : start + 100] = _from_ranks(ranks, dealt).max(1)
    return out


def _from_ranks(ranks: Array, right: NDArray[np.bool_]) -> Array:
    """[K, N]. ranks: [Q, N]. right: [K, Q], each of as many right ones."""
    count = int(right[0].sum())
    wrong = right.shape[1] - count
    if not count or not wrong:
        return np.full((len(right), ranks.shape[1]), np.nan)
    return (right.astype(np.float64) @ ranks - count * (count + 1) / 2) / (count * wrong)
