"""The test and validation splits as files: a JSONL of questions and PNG pictures each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spatial.layout import RELATIONS
from spatial.scenes import KINDS, Scene, held_out_scene

SEED = 0
COUNT = 400
SPLITS = (*KINDS, "validation")


def split_scene(split: str, number: int) -> Scene:
    """A test split holds its own kind of scene, the validation split all three in turn."""
    kind = KINDS[number % len(KINDS)] if split == "validation" else split
    return held_out_scene(SEED, split, number, kind)


def write_splits(folder: Path, count: int = COUNT) -> None:
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            scene = split_scene(split, number)
            image = f"images/{split}/{number:03}.png"
            scene.image.save(folder / image, optimize=True)
            lines.append(json.dumps(row_of(scene, f"{split}-{number:03}", image)) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


def row_of(scene: Scene, name: str, image: str) -> dict[str, Any]:
    return {
        "id": name,
        "image": image,
        "question": scene.question,
        "answer": scene.answer,
        "choices": list(RELATIONS),
        "kind": scene.kind,
        "subject": scene.subject,
        "reference": scene.reference,
        "familiar": scene.familiar,
        "distractors": scene.distractors,
        "boxes": boxes_of(scene),
    }


def boxes_of(scene: Scene) -> dict[str, list[float]]:
    """By name the box that each thing is drawn into: x0, y0, x1, y1 in the picture's pixels, from
    the back to the front."""
    sides = scene.image.size * 2
    return {
        name: [round(part * side, 1) for part, side in zip(box, sides, strict=True)]
        for name, box in scene.placed
    }


def read_split(folder: Path, split: str) -> list[dict[str, Any]]:
    """Its rows; "image" is made a full path."""
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    return [row | {"image": folder / row["image"]} for row in rows]
