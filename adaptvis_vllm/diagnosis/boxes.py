"""Boxes of the objects that a question names, from the field `boxes` of own data.

`boxes` maps names to a box, `[x0, y0, x1, y1]` in pixels of the picture as given (EXIF orientation
applied), or to a list of boxes. A question with several pictures has a list of such objects, one a
picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.answers import LOADERS
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.files.media import load_image, pixels
from adaptvis_vllm.files.urls import is_remote

FIELD = "boxes"
HUGE = 1e9  # pixels; no coordinate is larger
SLACK = 1.0  # pixels by which a rounded box may leave its picture


@dataclass(frozen=True)
class Boxes:
    """Of the objects that a question names.

    pictures: for each of the question's pictures [N, 4] float64 (x0, y0, x1, y1), N may be 0.
    names: whose they are, in the question's spelling where it names them.
    named: whether the question names them; else they are all boxes that it has.
    """

    pictures: tuple[NDArray[np.float64], ...]
    names: tuple[str, ...]
    named: bool = True


def own_boxes(question: Question) -> Boxes | None:
    """Those of a row of own data; None where it has none.

    An object is named if its name is in the question as a word, in any case; where no name is, all
    boxes count. ValueError names the row and the field of what is no box.
    """
    given = question.meta.get(FIELD)
    if given is None:
        return None
    pictures = given if isinstance(given, list | tuple) else [given]
    count = len(question.images)
    if len(pictures) != count or not all(isinstance(p, Mapping) for p in pictures):
        form = "an object of names and boxes"
        form += f", or a list of {count} such, one a picture" if count > 1 else ""
        raise ValueError(f"{_row(question)}: {FIELD} must be {form}, not {given!r:.80}")
    every = [
        (number, name, box)
        for number, objects in enumerate(pictures)
        for name, value in objects.items()
        for box in _boxes(value, f"{_row(question)}: {_field(number, name, count)}")
    ]
    if not every:
        return None
    named = [entry for entry in every if _names(question.question, entry[1])]
    kept = named or every
    return Boxes(
        tuple(
            np.array([box for at, _, box in kept if at == number], float).reshape(-1, 4)
            for number in range(count)
        ),
        tuple(dict.fromkeys(name for _, name, _ in kept)),
        bool(named),
    )


def check_inside(questions: Sequence[Question]) -> None:
    """ValueError for the first box, named or not, that leaves its picture by more than `SLACK`.

    Pictures behind URLs are not fetched for it: their boxes are cut at the picture's edge.
    """
    with ThreadPoolExecutor(LOADERS) as pool:
        try:
            for fault in pool.map(_outside, [q for q in questions if FIELD in q.meta]):
                if fault is not None:
                    raise ValueError(fault)
        finally:
            pool.shutdown(cancel_futures=True)


def _outside(question: Question) -> str | None:
    given, count = question.meta[FIELD], len(question.images)
    pictures = given if isinstance(given, list | tuple) else [given]
    for number, (source, objects) in enumerate(zip(question.images, pictures, strict=True)):
        if is_remote(source):
            continue
        width, height = pixels(load_image(source, Path(), "image")).size
        for name, value in objects.items():
            field = _field(number, name, count)
            for x0, y0, x1, y1 in _boxes(value, field):
                if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
                    return (
                        f"{_row(question)}: {field} must lie in the picture, which has "
                        f"{width} x {height} pixels, not {[x0, y0, x1, y1]}"
                    )
    return None


def _boxes(value: Any, where: str) -> Iterator[list[float]]:
    """One box or several."""
    several = value == [] or (
        isinstance(value, list | tuple) and any(isinstance(v, list | tuple) for v in value)
    )
    for box in value if several else [value]:
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
            raise ValueError(
                f"{where} must be [x0, y0, x1, y1], finite numbers of pixels, or a list of such, "
                f"not {value!r:.80}"
            )
        x0, y0, x1, y1 = map(float, box)
        if x1 <= x0 or y1 <= y0:
            raise ValueError(
                f"{where} must have x0 < x1 and y0 < y1, as [x0, y0, x1, y1] has, not {list(box)}"
            )
        yield [x0, y0, x1, y1]


def is_number(value: Any) -> bool:
    """A finite one of JSON."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and -HUGE < value < HUGE


def _names(text: str, name: str) -> bool:
    words = name.replace("_", " ").split()
    pattern = r"[\s_]+".join(map(re.escape, words))
    return bool(words) and bool(re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE))


def _row(question: Question) -> str:
    return f"{question.row}, question {question.id}" if question.row else f"question {question.id}"


def _field(number: int, name: Any, count: int) -> str:
    return f"{FIELD}[{number}].{name}" if count > 1 else f"{FIELD}.{name}"
