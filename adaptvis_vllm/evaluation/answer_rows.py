"""One row of `answer_files`: a question, its answers under several alphas, its confidences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.steering.fields import CONFIDENCES, check_field
from adaptvis_vllm.steering.words import nearest

FIELDS = ("id", "question", "prompt", "answer", "choices", "answers", "confidence")
STEERING = ("layers", "span")


@dataclass(frozen=True)
class AnswerRow:
    """texts: alpha -> answer; under None one of no single alpha. confidences: measure -> number.

    steering: `STEERING` fields that the row names.
    """

    question: Question
    texts: Mapping[float | None, str]
    confidences: Mapping[str, float]
    steering: Mapping[str, Any]


def parse_row(value: Any, number: str) -> AnswerRow:
    """number: the id of a row without one. ValueError names the field."""
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, Mapping):
        raise ValueError(f"it must be an object, not {type(value).__name__}")
    for name in ("question", "prompt"):
        text = value.get(name)
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise ValueError(f"{name} must be a text, not {text!r:.60}")
    prompt = value.get("prompt")
    question = prompt if value.get("question") is None else value["question"]
    if question is None:
        raise ValueError("question (or prompt) is missing")
    right = _texts("answer", value.get("answer"))
    choices = value.get("choices")
    if isinstance(choices, str):
        raise ValueError(f"choices must be a list of texts, not {choices!r:.60}")
    others = {
        k: _plain(v) for k, v in value.items() if k not in (*FIELDS, *STEERING) and v is not None
    }
    row_id = value.get("id")
    return AnswerRow(
        Question(
            id=number if row_id is None else str(row_id),
            images=(),
            question=question,
            answer=right,
            choices=() if choices is None else _texts("choices", choices),
            prompt=prompt,
            meta={"answer": right[0].lower()} | others,
        ),
        _given(value.get("answers")),
        _measures(value.get("confidence")),
        {n: check_field(n, value[n], "") for n in STEERING if value.get(n) is not None},
    )


def _texts(field: str, value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list | tuple) else [value]
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError(f"{field} must be a text or a list of texts, not {value!r:.60}")
    return tuple(texts)


def _given(value: Any) -> dict[float | None, str]:
    """alpha -> text, from a mapping or from pairs, which Parquet's maps are read as."""
    pairs = _pairs(value)
    if not pairs:
        raise ValueError(f"answers must map alphas to texts, not {value!r:.60}")
    out: dict[float | None, str] = {}
    for name, text in pairs:
        alpha = None
        if name is not None:
            try:
                alpha = check_field("alpha", float(name), "")
            except (TypeError, ValueError):
                raise ValueError(
                    f"answers must map alphas to texts: {name!r:.60} is no alpha, a number "
                    "greater than 0 and at most 100"
                ) from None
        if alpha in out:
            raise ValueError(f"answers hold alpha {alpha:g} twice")
        if not isinstance(text, str):
            raise ValueError(f"the answer under alpha {name} must be a text, not {text!r:.60}")
        out[alpha] = text
    return out


def _measures(value: Any) -> dict[str, float]:
    if value is None:
        return {}
    pairs = _pairs(value)
    out = {}
    for kind, number in [("max_prob", value)] if pairs is None else pairs:
        if kind not in CONFIDENCES:
            hint = nearest(str(kind), CONFIDENCES, "")
            raise ValueError(
                f"confidence must be of {', '.join(CONFIDENCES)}, not {kind!r:.60}{hint}"
            )
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
            raise ValueError(f"confidence {kind} must be a number from 0 to 1, not {number!r:.60}")
        out[kind] = float(number)
    return out


def _pairs(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list) and all(isinstance(v, tuple) and len(v) == 2 for v in value):
        return value
    return None


def check_like(row: AnswerRow, first: AnswerRow) -> None:
    """ValueError unless a row has the alphas, measures and steering of the first."""
    for what, mine, theirs in (
        ("answers under alpha", row.texts, first.texts),
        ("confidence", row.confidences, first.confidences),
        ("steering", row.steering, first.steering),
    ):
        for name in sorted({*mine} ^ {*theirs}, key=str):
            lacks = "lacks" if name in theirs else "has"
            raise ValueError(f"it {lacks} {what} {name or 'that is not known'}, unlike row 1")
    if row.steering != first.steering:
        raise ValueError(f"layers and span must be those of row 1, not {row.steering}")


def _plain(value: Any) -> Any:
    """Lists as tuples, which can be keys."""
    return tuple(map(_plain, value)) if isinstance(value, list) else value
