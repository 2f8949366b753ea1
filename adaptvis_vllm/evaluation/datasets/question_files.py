"""The question files of AdaptVis' code: JSONL of `{"id", "question", "answer"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptvis_vllm.files.lines import read_lines

# LLaVA-1.5's prompt around a question.
FRAME = re.compile(r"<image>\s*USER:\s*(?P<question>.*?)\s*ASSISTANT:", re.DOTALL)
CHOICES = re.compile(r"\bAnswer with (?P<choices>[^.\n]*)")


@dataclass(frozen=True)
class Asked:
    """One line. prompt: as published, with `<image>`. question: without the frame around it.

    choices: what it offers, in lower case; () where it asks for words of one's own.
    """

    id: str
    prompt: str
    question: str
    answer: tuple[str, ...]
    choices: tuple[str, ...]


def read_questions(path: Path) -> list[Asked]:
    """Every line of a file; ValueError names the file and the line that is none."""
    if not path.is_file():
        raise ValueError(f"no such question file: {path}")
    out = []
    for number, value in enumerate(read_lines(path), 1):
        try:
            out.append(parse_question(value))
        except ValueError as error:
            raise ValueError(f"{path}, question {number}: {error}") from None
    if not out:
        raise ValueError(f"{path} holds no questions")
    return out


def parse_question(value: Any) -> Asked:
    """A decoded line, or a row of the same columns; ValueError says what is wrong."""
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, Mapping) or not {"id", "question", "answer"} <= set(value):
        raise ValueError('it must be an object with "id", "question" and "answer"')
    prompt, answer = value["question"], value["answer"]
    answers = tuple(answer) if isinstance(answer, list | tuple) else (answer,)
    if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise ValueError(f"answer must be a text or a list of texts, not {answer!r:.60}")
    framed = FRAME.fullmatch(prompt.strip()) if isinstance(prompt, str) else None
    if framed is None:
        raise ValueError(
            f"question must have the form '<image> USER: .. ASSISTANT:', not {prompt!r:.60}"
        )
    question = framed["question"]
    return Asked(str(value["id"]), prompt, question, answers, choices_of(question))


def choices_of(question: str) -> tuple[str, ...]:
    """("left", "right", "on", "under") for "Answer with left, right, on or under."."""
    found = CHOICES.search(question)
    if found is None or " or " not in found["choices"]:
        return ()
    choices = tuple(c for c in re.split(r",\s*or\s+|,\s*|\s+or\s+", found["choices"].strip()) if c)
    return choices if all(" " not in choice for choice in choices) else ()
