"""What each head's shares tell of right and wrong answers, and which head's tell most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.diagnosis import auroc
from adaptvis_vllm.diagnosis.auroc import Held
from adaptvis_vllm.diagnosis.collect import Shares
from adaptvis_vllm.diagnosis.shares import IMAGE
from adaptvis_vllm.evaluation.stats import Interval, intervals

Array = NDArray[np.float64]
# A median share on the image below which a head is no candidate for the best: it hardly looks, and
# float16 leaves little of such weights.
BLIND = 0.001


@dataclass(frozen=True)
class Heads:
    """Of one measure, unsteered, on the q questions of which it is known.

    rows: [q], those. right: [q] bool. values: [q, L, H].
    blind: [L, H] bool, heads that hardly look at the image, see `BLIND`.
    auroc, low, high: [L, H], of right against wrong, with its 95% interval; NaN where all answers
        are right or all wrong.
    held: of the best head, cross-validated; None where that cannot be. shuffled: the best head's
        AUROC that right and wrong dealt out by chance stay below in 95 of 100 cases; NaN likewise.
    chance: in what part of such cases the best head's AUROC is as high as seen.
    """

    measure: str
    layers: NDArray[np.int32]
    rows: NDArray[np.intp]
    right: NDArray[np.bool_]
    values: NDArray[np.float32]
    blind: NDArray[np.bool_]
    auroc: Array
    low: Array
    high: Array
    held: Held | None
    shuffled: float
    chance: float

    @property
    def decided(self) -> bool:
        """Whether there are right and wrong answers."""
        return not bool(np.isnan(self.auroc).any())

    @property
    def order(self) -> list[int]:
        """Numbers of all L x H heads, best first: by AUROC, then by mean share; blind ones last."""
        mean = self.values.mean(0, dtype=np.float64).ravel()
        keys = (-mean, -np.nan_to_num(self.auroc.ravel()), self.blind.ravel())
        return np.lexsort(keys).tolist()

    @property
    def best(self) -> tuple[int, int]:
        """Line in L, and head."""
        return self.place(self.order[0])

    def place(self, number: int) -> tuple[int, int]:
        line, head = np.unravel_index(number, self.auroc.shape)
        return int(line), int(head)

    def name(self, number: int) -> str:
        """layer.head"""
        line, head = self.place(number)
        return f"{self.layers[line]}.{head}"

    def mean(self, rows: NDArray[np.bool_] | None = None) -> Array:
        """[L, H]; of some of the q questions. NaN of none."""
        chosen = self.values if rows is None else self.values[rows]
        if not len(chosen):
            return np.full(self.auroc.shape, np.nan)
        return chosen.mean(0, dtype=np.float64)


@dataclass(frozen=True)
class Layers:
    """Of the mean of each layer's heads: AUROCs and means over questions, with 95% intervals, [L].

    auroc: values NaN where all answers are right or all wrong. right, wrong: empty where there are
    none.
    """

    auroc: tuple[Interval, ...]
    mean: tuple[Interval, ...]
    right: tuple[Interval, ...]
    wrong: tuple[Interval, ...]


def heads(shares: Shares, measure: str, right: NDArray[np.bool_]) -> Heads:
    """right: [Q] bool, of all questions."""
    rows = shares.rows(measure)
    values, right = shares.before[measure][rows], right[rows]
    flat = values.reshape(len(rows), -1)
    blind = np.median(shares.before[IMAGE], axis=0) < BLIND
    blind &= not blind.all()
    looks = np.flatnonzero(~blind)
    found = auroc.auroc(flat, right)
    low, high = auroc.interval(found, int(right.sum()), int((~right).sum()))
    shuffled = chance = float("nan")
    if not np.isnan(found).any():
        best = auroc.best_of_shuffled(flat[:, looks], right)
        shuffled = float(np.percentile(best, 95))
        chance = float((1 + (best >= found[looks].max() - 1e-9).sum()) / (1 + len(best)))
    held = auroc.cross_validated(flat[:, looks], right)
    if held is not None:
        held = replace(held, picks={int(looks[n]): count for n, count in held.picks.items()})
    shape = values.shape[1:]
    return Heads(
        measure,
        shares.layers,
        rows,
        right,
        values,
        blind,
        found.reshape(shape),
        low.reshape(shape),
        high.reshape(shape),
        held,
        shuffled,
        chance,
    )


def layers(found: Heads) -> Layers:
    per_layer = found.values.mean(2, dtype=np.float64)
    parts = [per_layer, per_layer[found.right], per_layer[~found.right]]
    return Layers(
        telling(per_layer, found.right),
        *(tuple(intervals(part.T)) if len(part) else () for part in parts),
    )


def telling(values: Any, right: NDArray[np.bool_]) -> tuple[Interval, ...]:
    """[N] AUROCs of columns [q, N] with their intervals; NaN where all are right or all wrong."""
    value = auroc.auroc(values, right)
    low, high = auroc.interval(value, int(right.sum()), int((~right).sum()))
    return tuple(Interval(*map(float, ends)) for ends in zip(value, low, high, strict=True))


def ranking(found: Heads, about: Mapping[str, Any]) -> dict[str, Any]:
    """The heads, best first, as a file has them. about: what they were ranked on."""
    right, wrong = found.mean(found.right), found.mean(~found.right)
    numbers = []
    for number in found.order:
        place = found.place(number)
        numbers.append(
            {
                "head": found.name(number),
                "auroc": float(found.auroc[place]),
                "low": float(found.low[place]),
                "high": float(found.high[place]),
                "share": float(found.mean()[place]),
                "share_right": float(right[place]),
                "share_wrong": float(wrong[place]),
                "blind": bool(found.blind[place]),
            }
        )
    return {
        "heads": [entry["head"] for entry in numbers],
        "by": "auroc" if found.decided else "share",
        "measure": found.measure,
        **about,
        "best": held_json(found),
        "numbers": numbers,
    }


def held_json(found: Heads) -> dict[str, Any]:
    """The best head's figures, and what they are worth."""
    place = found.best
    held = None
    if found.held is not None:
        held = {name: value for name, value in asdict(found.held).items() if name != "picks"}
        held["picks"] = {found.name(number): count for number, count in found.held.picks.items()}
    return {
        "head": found.name(found.order[0]),
        "auroc": float(found.auroc[place]),
        "low": float(found.low[place]),
        "high": float(found.high[place]),
        "cross_validated": held,
        "shuffled_95": found.shuffled,
        "chance": found.chance,
    }
