"""Made-up sweeps whose best setting is known, and questions for real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from checkpoints.images import make_image
from numpy.typing import NDArray

from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.table import SweepTable
from adaptvis_vllm.steering.fields import CONFIDENCES

ALPHAS = np.array([0.25, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 4.0])
QUESTIONS = int(os.environ.get("ADAPTVIS_TEST_QUESTIONS", "24"))
Chances = Callable[[dict[str, NDArray[np.float32]]], NDArray[np.float64]]


def made_up(count: int, chances: Chances, seed: int = 0, alike: float = 0.7) -> SweepTable:
    """chances: confidences -> [Q, A] probability of a right answer.

    alike: how often a question's answers under two alphas share their luck, as real ones do.
    """
    rng = np.random.default_rng(seed)
    confidences = {kind: rng.random(count).astype(np.float32) for kind in CONFIDENCES}
    shape = (count, len(ALPHAS))
    luck = np.where(rng.random(shape) < alike, rng.random((count, 1)), rng.random(shape))
    scores = (luck < chances(confidences)).astype(np.float64)
    return SweepTable(
        [str(i) for i in range(count)], ALPHAS, [["-"] * len(ALPHAS)] * count, scores, confidences
    )


def flat(chance: float) -> Chances:
    """No alpha is better than another."""
    return lambda c: np.full((len(c["max_prob"]), len(ALPHAS)), chance)


def one_alpha(c: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """alpha = 2 is right more often, whatever the confidence."""
    out = np.full((len(c["max_prob"]), len(ALPHAS)), 0.6)
    out[:, 5:7] = 0.7, 0.85
    return out


def two_alphas(c: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """0.5 helps where the margin is below 0.4, 2 elsewhere."""
    unsure = c["margin"] < 0.4
    out = np.full((len(unsure), len(ALPHAS)), 0.6)
    out[unsure, 1] = 0.9
    out[~unsure, 6] = 0.85
    return out


def questions(count: int, *, first: int = 0) -> list[Question]:
    """Different pictures and prompts of different lengths."""
    names = ("cat", "red square", "mug", "blue triangle", "dog in front of the house")
    return [
        Question(
            id=str(first + i),
            images=(make_image(first + i),),
            question=f"Where is the {names[i % 5]} in relation to the {names[(i // 5) % 5]}? "
            + "Answer with left, right, on or under. " * (i % 3),
            answer="e",
        )
        for i in range(count)
    ]


def write_questions(folder: Path, split: str, count: int, first: int = 0) -> None:
    """A split of own data, its pictures beside it."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.jsonl").open("w") as out:
        for question in questions(count, first=first):
            name = f"{split}-{question.id}.png"
            question.images[0].save(folder / name)  # type: ignore[union-attr]
            row = {"id": f"{split}-{question.id}", "image": name, "question": question.question}
            out.write(json.dumps(row | {"answer": question.answer}) + "\n")
