"""Files of answers, made up: rows, and result files of the paper's code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.benchmark_files import FOUR, framed

OBJECTS = ("mug", "beer bottle", "scarf", "orange", "pan", "cap")
RELATIONS = ("Left", "Right", "On", "Under")
COUNT = len(OBJECTS) * len(RELATIONS)
NAME = "results1.5_Controlled_Images_A_{}_fouroption_{}.json"


def asked(number: int) -> tuple[str, str]:
    """(question, right answer) of one of `COUNT`: six sets of four relations."""
    thing = OBJECTS[number // 4]
    return (
        f"Where is the {thing} in relation to the armchair? Answer with {FOUR}.",
        RELATIONS[number % 4],
    )


def said(number: int, alpha: float) -> str:
    """Right under 1 where the answer is left or right; under 0.5 where it is on or under."""
    right = asked(number)[1]
    if (right in ("Left", "Right")) == (alpha >= 1):
        return right if alpha >= 1 else f"The thing is {right.lower()} it."
    return "Left" if right != "Left" else "Right"


def unsure(number: int) -> float:
    """Confidence: below 0.5 exactly where 0.5 is right."""
    low = asked(number)[1] in ("On", "Under")
    return round((0.2 if low else 0.6) + number / 100, 2)


def rows(alphas: Sequence[float] = (0.5, 1, 2), count: int = COUNT) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{number}",
            "question": asked(number)[0],
            "answer": asked(number)[1],
            "answers": {str(float(a)): said(number, a) for a in alphas},
            "confidence": {"max_prob": unsure(number)},
        }
        for number in range(count)
    ]


def results(alpha: float | None, uncertainty: str | None = None) -> list[dict[str, Any]]:
    """As the paper's code writes them. alpha None: an adaptive run with 0.5 / 2 at 0.5."""
    out = []
    for number in range(COUNT):
        confidence = unsure(number)
        used = alpha if alpha is not None else 0.5 if confidence < 0.5 else 2.0
        question, golden = asked(number)
        row = {"Prompt": framed(question), "Generation": said(number, used), "Golden": golden}
        out.append(row | ({uncertainty: confidence} if uncertainty else {}))
    return out


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, indent=4))
    return path


def write_rows(path: Path, values: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def write_results(folder: Path, test: bool = True) -> dict[str, Path]:
    """base, 0.5, 2 and adaptive, one file each."""
    return {
        key: write_json(folder / NAME.format(middle, test), content)
        for key, middle, content in (
            ("base", "base_1.0", results(1.0)),
            ("low", "scaling_vis_0.5", results(0.5)),
            ("high", "scaling_vis_2.0", results(2.0)),
            ("adaptive", "adapt_vis_1.0", results(None, "uncertainty")),
        )
    }
