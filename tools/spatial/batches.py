"""Batches of pictures with several questions each, which share the picture's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

import torch
from torch.utils.data import Dataset

from spatial.model import IMAGE, IMAGE_SIZE, PATCH, prompt_of
from spatial.questions import training_questions
from spatial.scenes import Scene, training_scene

TOKENS = (IMAGE_SIZE // PATCH) ** 2
Batch = dict[str, torch.Tensor]


def encode(
    processor: Any,
    images: Sequence[Any],
    questions: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
) -> Batch:
    """B pictures with K questions each, in rows of S tokens: the prompt up to the picture's
    end once, then every question's rest and answer word.

    ids, part, position: [B, S]. part: 0 for what all questions share, else the question's
    number from 1. position: that of the token in its own prompt. rows: [B, K], the last
    prompt token of each question. answers: [B, K]. pixels: [B, 3, H, W].
    """
    tokenizer = processor.tokenizer
    ids, part, position, rows, words = [], [], [], [], []
    for asked, answered in zip(questions, answers, strict=True):
        row, last, right = [], [], []
        for number, (question, answer) in enumerate(zip(asked, answered, strict=True), 1):
            shared, rest, word = _tokens(tokenizer, question, answer)
            if not row:
                row = [(token, 0, i) for i, token in enumerate(shared)]
            row += [(token, number, len(shared) + i) for i, token in enumerate(rest)]
            last.append(len(row) - 2)
            right.append(word)
        for out, values in zip((ids, part, position), zip(*row, strict=True), strict=True):
            out.append(torch.tensor(values))
        rows.append(last)
        words.append(right)
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "ids": pad(ids, batch_first=True),
        "part": pad(part, batch_first=True, padding_value=-1),
        "position": pad(position, batch_first=True),
        "rows": torch.tensor(rows),
        "answers": torch.tensor(words),
        "pixels": processor.image_processor(list(images), return_tensors="pt")["pixel_values"],
    }


@lru_cache(4096)
def _tokens(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int], int]:
    """The prompt up to the picture's end, its rest with the answer, the answer."""
    prompt = tokenizer(prompt_of(question))["input_ids"]
    image = prompt.index(tokenizer.convert_tokens_to_ids(IMAGE))
    (word,) = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return prompt[:image] + [prompt[image]] * TOKENS, [*prompt[image + 1 :], word], word


class Pictures(Dataset):
    """Batch i of pictures alone: pixels [B, 3, H, W], patches [B, tokens], what is at the
    middle of each patch."""

    def __init__(self, processor: Any, seed: int, steps: int, batch: int) -> None:
        self.processor, self.seed, self.steps, self.batch = processor, seed, steps, batch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        scenes = self.scenes("vision", index)
        pixels = self.processor.image_processor([s.image for s in scenes], return_tensors="pt")
        return {"pixels": pixels["pixel_values"], "patches": patches(scenes)}

    def scenes(self, stage: str, index: int) -> list[Scene]:
        numbers = range(index * self.batch, (index + 1) * self.batch)
        return [training_scene(self.seed, stage, number) for number in numbers]


class Questions(Pictures):
    """Batch i of pictures with questions: what `encode` gives, patches, and
    blind: [B, K] bool, whether the question's rows before the last one see no picture.
    """

    def __init__(self, processor: Any, seed: int, steps: int, batch: int, blind: float) -> None:
        super().__init__(processor, seed, steps, batch)
        self.blind = blind

    def __getitem__(self, index: int) -> Batch:
        scenes = self.scenes("language", index)
        rng = Random(f"questions {self.seed} {index}")
        asked = [training_questions(rng, scene) for scene in scenes]
        batch = encode(
            self.processor,
            [scene.image for scene in scenes],
            [[question for question, _ in some] for some in asked],
            [[answer for _, answer in some] for some in asked],
        )
        batch["patches"] = patches(scenes)
        batch["blind"] = torch.tensor([[rng.random() < self.blind for _ in q] for q in asked])
        return batch


def patches(scenes: Sequence[Scene]) -> torch.Tensor:
    return torch.tensor([scene.patches(IMAGE_SIZE // PATCH) for scene in scenes])
