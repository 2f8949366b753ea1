"""Result files of AdaptVis' code, as rows of `answer_files`.

`results1.5_{dataset}_{method}_{weight}_{option}option_{True|False}.json`, for VSR
`results_VSR_{method}_{weight}.json`: a list of `Prompt`, `Generation` (a text; in files of others
alpha -> text), `Golden` (a text or several) and `uncertainty` or `Uncertainty`, which is the first
token's largest probability; one file a weight. True are the test questions, False those for
validation. Source: github.com/shiqichen17/AdaptVis, `model_zoo/llava15.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation.datasets.question_files import FRAME, choices_of
from adaptvis_vllm.evaluation.datasets.whatsup import PARTS

FIELDS = ("Prompt", "Generation", "Golden")
UNCERTAINTIES = ("uncertainty", "Uncertainty", "uncertainty_prob")
DATASETS = {part.hub: name for name, part in PARTS.items()} | {"VSR": "vsr"}
_NAME = re.compile(
    rf"results[\d.]*_(?P<dataset>{'|'.join(DATASETS)})_(?P<method>.*?)_(?P<weight>\d+(\.\d+)?)"
    r"(_[\d.]+)*(_\w+option)?(_(?P<test>True|False))?\.json"
)


@dataclass(frozen=True)
class Origin:
    """What a file's name says; nothing where it has another form.

    dataset: name of a benchmark. split: "test", "validation" or "". alpha: of answers that are
    given as texts; None for an adaptive run's, which have no single one.
    """

    dataset: str = ""
    split: str = ""
    method: str = ""
    alpha: float | None = None


def origin(path: Path) -> Origin:
    found = _NAME.fullmatch(path.name)
    if found is None:
        return Origin()
    alpha = {"scaling_vis": float(found["weight"]), "base": 1.0}.get(found["method"])
    split = {"True": "test", "False": "validation"}.get(found["test"] or "", "")
    return Origin(DATASETS[found["dataset"]], split, found["method"], alpha)


def is_result(value: Any) -> bool:
    return isinstance(value, Mapping) and "Generation" in value


def as_rows(values: Sequence[Any], path: Path) -> tuple[list[Any], tuple[str, ...]]:
    """(rows, notes): each value's row, or a ValueError in its place.

    The confidence is left out, which a note says, where the file's is not that of unsteered
    answers, and where it is no probability: that code also writes raw scores there.
    """
    found = origin(path)
    rows: list[Any] = []
    for value in values:
        try:
            rows.append(_row(value, found))
        except ValueError as error:
            rows.append(error)
    given = [r["confidence"] for r in rows if isinstance(r, dict) and r["confidence"] is not None]
    raw = next((number for number in given if not 0 <= number <= 1), None)
    steered = found.alpha not in (None, 1.0) and all(isinstance(v, str) for v in _texts(values))
    why = None
    if given and steered:
        why = f"is that of answers under alpha {found.alpha:g}"
    elif raw is not None:
        why = f"is no probability ({raw:g})"
    if why is None:
        return rows, ()
    for row in rows:
        if isinstance(row, dict):
            row["confidence"] = None
    return rows, (f"The uncertainty in {path.name} {why}; it is left out.",)


def _texts(values: Sequence[Any]) -> list[Any]:
    return [value["Generation"] for value in values if is_result(value)]


def _row(value: Any, found: Origin) -> dict[str, Any]:
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, Mapping):
        raise ValueError(f"it must be an object, not {type(value).__name__}")
    for name in FIELDS:
        if name not in value:
            raise ValueError(f"{name} is missing")
    prompt, text, golden = (value[name] for name in FIELDS)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"Prompt must be a text, not {prompt!r:.60}")
    right = golden if isinstance(golden, list) else [golden]
    if not right or not all(isinstance(g, str) and g.strip() for g in right):
        raise ValueError(f"Golden must be a text or a list of texts, not {golden!r:.60}")
    if not isinstance(text, str | Mapping) or text == {}:
        raise ValueError(f"Generation must be a text, or map alphas to texts, not {text!r:.60}")
    framed = FRAME.fullmatch(prompt.strip())
    question = framed["question"] if framed else prompt
    return {
        "question": question,
        "prompt": prompt,
        "choices": choices_of(question) or None,
        "answer": right,
        "answers": text if isinstance(text, Mapping) else {found.alpha: text},
        "confidence": _uncertainty(value),
    }


def _uncertainty(value: Mapping[str, Any]) -> float | None:
    for name in UNCERTAINTIES:
        number = value.get(name)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} must be a number, not {number!r:.60}")
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, not {number}")
        return float(number)
    return None
