"""A split's answers with their maps, each map reduced to shares as soon as it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.diagnosis.boxes import Boxes
from adaptvis_vllm.diagnosis.shares import IMAGE, MEASURES, Array, inside, shares
from adaptvis_vllm.evaluation.answers import Answer, answer
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.left_out import LeftOut
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.steering.params import SteeringParams


@dataclass(frozen=True)
class Shares:
    """Of Q questions in L layers of H heads.

    layers: [L] int32, the decoder layers.
    before: measure -> [Q, L, H] float32, unsteered; NaN where it is not known.
    after: the same of the steered answers; None without steering.
    even: [Q] as in `shares`, NaN where it is not known.
    unknown: why shares in boxes are not known though there are boxes; "" where they are.
    """

    layers: NDArray[np.int32]
    before: Mapping[str, Array]
    after: Mapping[str, Array] | None
    even: NDArray[np.float64]
    unknown: str = ""

    @property
    def boxed(self) -> NDArray[np.bool_]:
        """[Q], of which questions the shares in boxes are known."""
        return ~np.isnan(self.even)

    @property
    def measures(self) -> tuple[str, ...]:
        return MEASURES if self.boxed.any() else (IMAGE,)

    def rows(self, measure: str) -> NDArray[np.intp]:
        """The questions of which a measure is known."""
        return np.arange(len(self.even)) if measure == IMAGE else np.flatnonzero(self.boxed)


class Collector:
    """Takes each finished output; keeps [L, H] numbers of it, never its maps."""

    def __init__(self, boxes: Sequence[Boxes | None]) -> None:
        self.boxes = boxes
        self.layers: NDArray[np.int32] | None = None
        self.unknown = ""
        self.found: dict[tuple[int, int], Mapping[str, Array]] = {}
        self.even: dict[int, float] = {}

    def see(self, question: int, steering: int, output: Any) -> str | None:
        """An `answers.See`. steering: 0 is unsteered."""
        maps = getattr(output, "adaptvis_maps", None)
        if maps is None:
            return "the engine gave no attention maps for it"
        return self.add(question, steering, maps)

    def add(self, question: int, steering: int, maps: Maps) -> str | None:
        if self.layers is None:
            self.layers = maps.layers
        boxes = self.boxes[question]
        if boxes is not None and maps.unknown:
            self.unknown = maps.unknown
        seen = None if boxes is None else inside(maps, boxes)
        if seen is not None:
            self.even[question] = seen.even
        which = "after" if steering else "before"
        self.found[question, steering] = shares(maps, which, seen)
        return None

    def shares(self, kept: Sequence[int], steerings: int) -> Shares:
        """Of the questions of these numbers."""
        assert self.layers is not None
        before, *after = (
            {name: self._stacked(name, kept, number) for name in MEASURES}
            for number in range(steerings)
        )
        return Shares(
            self.layers,
            before,
            after[0] if after else None,
            np.array([self.even.get(number, np.nan) for number in kept]),
            self.unknown,
        )

    def _stacked(self, name: str, kept: Sequence[int], steering: int) -> Array:
        first = self.found[kept[0], steering][IMAGE]
        nothing = np.full_like(first, np.nan)
        rows = [self.found[number, steering].get(name, nothing) for number in kept]
        return np.stack(rows).astype(np.float32)


def collect(
    llm: Any,
    questions: Sequence[Question],
    boxes: Sequence[Boxes | None],
    steerings: Sequence[SteeringParams],
    left_out: LeftOut,
    *,
    maps: str,
    **options: Any,
) -> tuple[tuple[Question, ...], list[list[Answer]], Shares]:
    """(questions that were answered, their answers [Q][steerings], shares).

    llm: a vLLM `LLM`. steerings: unsteered first, then at most one more. maps: layers, as of
    `SteeringParams`. options: of `answers.answer`.
    """
    collector = Collector(boxes)
    asked = [replace(steering, maps=maps) for steering in steerings]
    answers = answer(llm, questions, asked, refuse=left_out.add, see=collector.see, **options)
    kept = [number for number, found in enumerate(answers) if found]
    rest, given = left_out.answered(questions, answers)
    return rest, given, collector.shares(kept, len(steerings))
