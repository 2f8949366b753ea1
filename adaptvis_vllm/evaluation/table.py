"""What a sweep found out: every question's score under every alpha, and its confidences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.params import SteeringParams

PLAIN = 1.0  # the alpha of an unsteered answer


@dataclass(frozen=True)
class SweepTable:
    """Q questions under A alphas.

    ids: [Q], for messages and results. alphas: [A] float64, ascending and distinct, with
    `PLAIN`, whose answers are unsteered. texts: [Q][A] answers.
    scores: [Q, A] float64 in [0, 1], 1 where an answer is right.
    confidences: for measures of `CONFIDENCES` [Q] float32, of the unsteered first token; those
        that are not known lack.
    layers, span, heads, rule: of all steering, as in `SteeringParams`.
    """

    ids: Sequence[str]
    alphas: NDArray[np.float64]
    texts: Sequence[Sequence[str]]
    scores: NDArray[np.float64]
    confidences: Mapping[str, NDArray[np.float32]]
    layers: str | None = None
    span: str = "embeddings"
    heads: str | None = None
    rule: str = "multiply"

    @property
    def where(self) -> dict[str, Any]:
        """What all its steering has in common, fields of `SteeringParams`."""
        return {name: getattr(self, name) for name in ("layers", "heads", "span", "rule")}

    def __post_init__(self) -> None:
        shape = (len(self.ids), len(self.alphas))
        if not len(self.ids):
            raise ValueError("there are no questions to calibrate on")
        if self.scores.shape != shape:
            raise ValueError(f"scores have the shape {self.scores.shape}, not {shape}")
        if PLAIN not in self.alphas or np.any(np.diff(self.alphas) <= 0):
            raise ValueError(f"alphas must ascend and contain {PLAIN:g}, not {self.alphas}")
        for kind, values in self.confidences.items():
            if values.dtype != np.float32 or values.shape != shape[:1]:
                raise ValueError(f"confidence {kind} must be [{shape[0]}] float32")

    @property
    def measures(self) -> tuple[str, ...]:
        """Those that are known, in the order of `CONFIDENCES`."""
        return tuple(kind for kind in CONFIDENCES if kind in self.confidences)

    @property
    def plain(self) -> int:
        """Index of the unsteered answers."""
        return self.index(PLAIN)

    def index(self, alpha: float | None) -> int:
        """Of an alpha; ValueError for one that was not swept."""
        (found,) = np.nonzero(self.alphas == alpha)
        if not len(found):
            raise ValueError(f"alpha {alpha} was not swept; swept were {self.shown}")
        return int(found[0])

    @property
    def shown(self) -> str:
        """The alphas, for messages."""
        return ", ".join(f"{alpha:g}" for alpha in self.alphas)

    def chosen(self, params: SteeringParams) -> NDArray[np.intp]:
        """[Q] index of the alpha that an engine would give each question.

        The comparison is the engine's: float32, confidence < threshold means alpha_low.
        ValueError for what was not swept.
        """
        if params.mode == "off":
            return np.full(len(self.ids), self.plain)
        for name, value in {**self.where, "confidence_decimals": None}.items():
            if getattr(params, name) != value:
                raise ValueError(f"{name} {getattr(params, name)!r} was not swept")
        if params.mode == "scaling":
            return np.full(len(self.ids), self.index(params.alpha))
        if params.confidence not in self.confidences:
            known = ", ".join(self.measures) or "none"
            raise ValueError(f"confidence {params.confidence} is not known; known is {known}")
        below = self.confidences[params.confidence] < np.float32(params.threshold)
        return np.where(below, self.index(params.alpha_low), self.index(params.alpha_high))

    def scores_of(self, params: SteeringParams) -> NDArray[np.float64]:
        """[Q] scores of one setting, without running it."""
        return self.scores[np.arange(len(self.ids)), self.chosen(params)]
