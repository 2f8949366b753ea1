"""Answers that were given elsewhere, read from files: one answer a question and alpha.

Rows, as JSONL, Parquet or a JSON list: `question` (or `prompt`), `answer` (the right one, or
several), `answers` (alpha -> text), and if known `id`, `choices`, `confidence` (of the unsteered
first token: measure -> number, or one number, which is `max_prob`), `layers` and `span` (of all
steering). Other fields become `Question.meta`. Result files of the paper's code are rows of
another form, see `result_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.answer_rows import STEERING, AnswerRow, check_like, parse_row
from adaptvis_vllm.evaluation.datasets.own import parquet_rows
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.result_files import as_rows, is_result, origin
from adaptvis_vllm.files.lines import dumps, loads, read_lines

SUFFIXES = (".jsonl", ".parquet", ".json")


@dataclass(frozen=True)
class Answers:
    """Q questions and what was answered.

    files: where from. questions: [Q], without pictures. texts: alpha -> [Q] answers; under None
    those of no single alpha, such as an adaptive run's. confidences: measure -> [Q] float32, for
    the measures that are known. layers, span: of all steering, None where the file says nothing.
    dataset: a benchmark's name; split: "test", "validation"; "" where not known. own_ids: the
    rows have ids. notes: sentences about what was left out.
    """

    files: tuple[Path, ...]
    questions: tuple[Question, ...]
    texts: Mapping[float | None, tuple[str, ...]]
    confidences: Mapping[str, NDArray[np.float32]]
    layers: str | None = None
    span: str | None = None
    dataset: str = ""
    split: str = ""
    own_ids: bool = False
    notes: tuple[str, ...] = ()

    @property
    def alphas(self) -> tuple[float, ...]:
        """Ascending."""
        return tuple(sorted(alpha for alpha in self.texts if alpha is not None))

    @property
    def name(self) -> str:
        return ", ".join(path.name for path in self.files)


def read_answers(paths: Sequence[Path]) -> Answers:
    """One file, or several about the same questions in the same order, joined by position.

    ValueError, in one sentence, for what cannot be read or does not agree.
    """
    return join([_read(path) for path in paths])


def join(parts: Sequence[Answers]) -> Answers:
    """The answers of all parts to the questions of the first."""
    first = parts[0]
    texts = dict(first.texts)
    confidences = dict(first.confidences)
    known = {name: getattr(first, name) for name in (*STEERING, "dataset", "split")}
    for part in parts[1:]:
        for name, value in known.items():
            other = getattr(part, name)
            if value and other and value != other:
                raise ValueError(
                    f"{first.name} has the {name} {value}, but {part.name} {other}; files that "
                    "are joined must be about the same questions"
                )
            known[name] = value or other
        check_same(first, part)
        for alpha, given in part.texts.items():
            if texts.setdefault(alpha, given) != given:
                row = _first_difference(texts[alpha], given)
                what = "no single alpha" if alpha is None else f"alpha {alpha:g}"
                raise ValueError(
                    f"{part.name} has other answers under {what} than the files before it, first "
                    f"in row {row}"
                )
        for kind, values in part.confidences.items():
            if not np.array_equal(confidences.setdefault(kind, values), values):
                row = _first_difference(confidences[kind], values)
                raise ValueError(
                    f"{part.name} has another {kind} than the files before it, first in row {row}"
                )
    return Answers(
        tuple(path for part in parts for path in part.files),
        first.questions,
        texts,
        confidences,
        own_ids=first.own_ids,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        **known,
    )


def check_same(one: Answers, other: Answers) -> None:
    """ValueError unless both are about the same questions in the same order."""
    if len(one.questions) != len(other.questions):
        raise ValueError(
            f"{one.name} holds {len(one.questions)} questions and {other.name} "
            f"{len(other.questions)}; they must be about the same"
        )
    for number, (a, b) in enumerate(zip(one.questions, other.questions, strict=True), 1):
        pairs = [("questions", a.question, b.question), ("right answers", a.answers, b.answers)]
        if one.own_ids and other.own_ids:
            pairs.append(("ids", a.id, b.id))
        for what, mine, theirs in pairs:
            if mine != theirs:
                raise ValueError(
                    f"{one.name} and {other.name} have different {what} in row {number}: "
                    f"{_short(mine)} and {_short(theirs)}"
                )


def write_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the form above, as JSONL."""
    path.write_bytes(b"".join(dumps(row) + b"\n" for row in rows))


def _read(path: Path) -> Answers:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in {', '.join(SUFFIXES)}")
    values, notes = list(_values(path)), tuple[str, ...]()
    if any(is_result(value) for value in values):
        values, notes = as_rows(values, path)
    rows: list[AnswerRow] = []
    ids = set()
    for number, value in enumerate(values, 1):
        try:
            row = parse_row(value, str(number))
            if row.question.id in ids:
                raise ValueError(f"the id {row.question.id!r} occurs twice")
            if rows:
                check_like(row, rows[0])
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        ids.add(row.question.id)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no answers")
    found = origin(path)
    return Answers(
        (path,),
        tuple(row.question for row in rows),
        {alpha: tuple(row.texts[alpha] for row in rows) for alpha in rows[0].texts},
        {
            kind: np.array([row.confidences[kind] for row in rows], np.float32)
            for kind in rows[0].confidences
        },
        dataset=found.dataset,
        split=found.split,
        own_ids=values[0].get("id") is not None,
        notes=notes,
        **{name: rows[0].steering.get(name) for name in STEERING},
    )


def _values(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
    elif path.suffix == ".jsonl":
        yield from read_lines(path)
    else:
        try:
            content = loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
        if not isinstance(content, list):
            held = f"an object with {', '.join(map(str, content))[:60]}" if content else "nothing"
            what = held if isinstance(content, dict) else f"{content!r:.40}"
            raise ValueError(f"{path} must hold a list of answers, not {what}")
        yield from content


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else ", ".join(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _first_difference(one: Any, other: Any) -> int:
    return next(n for n, (a, b) in enumerate(zip(one, other, strict=True), 1) if a != b)
