"""One question of a benchmark, and a benchmark: questions, how they are scored, what is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

# What `media.load_image` reads: a path (absolute), URL, data URI, a file's bytes, or a picture.
Source = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what is right.

    id: unique in its benchmark, for messages and results.
    images: in the order in which the prompt shows them; paths are absolute.
    question: the plain text; it is sent through the model's chat template, images first.
    prompt: a raw prompt with the model's image placeholders, as a benchmark published it; sent
        as it is instead of `question` unless the caller wants the template. None for none.
    answer: the right answer, or several that are all right; scorers know how to compare.
    choices: the answers that the question offers, if it offers any.
    meta: whatever a benchmark's metrics need (relation, objects, label).
    row: file and row of own data, for messages.
    """

    id: str
    images: tuple[Source, ...]
    question: str
    answer: str | tuple[str, ...]
    choices: tuple[str, ...] = ()
    prompt: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    row: str = field(default="", compare=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer


# Whether a generation answers the question rightly. Any function of this form is a scorer.
Scorer = Callable[[Question, str], bool]
# Named figures in [0, 1] of a whole split from each question's rightness; None if undefined.
Metrics = Callable[[Sequence[Question], Sequence[bool]], "dict[str, float | None]"]


@dataclass(frozen=True)
class Published:
    """A published figure, in percent.

    method: "base", "scaling" or "adaptive". figure: "accuracy", or a name of the metrics.
    """

    model: str
    method: str
    value: float
    figure: str = "accuracy"


@dataclass(frozen=True)
class Refused:
    """A row of own data that is left out. split: its file's name, without ending. id: null if it
    has none that can be read."""

    split: str
    id: str | None
    error: str


@dataclass(frozen=True)
class Benchmark:
    """Questions and how to judge the answers.

    splits: name -> indices into `questions`. "all" is every question and always there.
    split: the one that is evaluated unless another is asked for; "" if one must be chosen.
    metrics: further figures beside accuracy; None for none.
    preset: the published steering for it, a name of `fields.PRESETS`; None for none.
    chance: accuracy of guessing among the choices; None where there are none.
    groups: fields of `Question.meta` by which accuracy is reported.
    lenient: what cannot be asked or answered is left out and listed, as with own data; else it is
        an error. refused: what was left out so far.
    """

    name: str
    questions: tuple[Question, ...]
    scorer: Scorer
    metrics: Metrics | None = None
    preset: str | None = None
    published: tuple[Published, ...] = ()
    chance: float | None = None
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    split: str = "all"
    groups: tuple[str, ...] = ()
    lenient: bool = False
    refused: tuple[Refused, ...] = ()

    def select(self, split: str | None = None) -> tuple[Question, ...]:
        """The questions of a split, the default one if None; ValueError for an unknown one."""
        name = split or self.split
        if name == "all":
            return self.questions
        if name not in self.splits:
            known = ", ".join(["all", *self.splits])
            if not name:
                raise ValueError(f"{self.name} needs --split, one of {known}")
            raise ValueError(f"{self.name} has no split {name!r}; it has {known}")
        return tuple(self.questions[i] for i in self.splits[name])

    def refused_of(self, split: str | None = None) -> list[Refused]:
        """Those of a split that `select` knows."""
        name = split or self.split
        return [r for r in self.refused if name in ("all", r.split)]


def chance_of(questions: Sequence[Question]) -> float | None:
    """Accuracy of guessing evenly among each question's choices; None if one has none."""
    if not questions or not all(q.choices for q in questions):
        return None
    return sum(1 / len(q.choices) for q in questions) / len(questions)
