"""Requests that every engine must answer as the transformers reference does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints.images import make_images

QUESTIONS = (
    "Where is the red cat?",
    "What is left of the table?",
    "Is the mug under the chair?",
    "Answer with left, right, on or under.",
)
ALPHAS = (0.3, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)
# (alpha_low, alpha_high, threshold): the tiny model's confidences lie on both sides of 0.4.
TRIPLES = ((0.5, 1.5, 0.4), (3.0, 0.3, 0.4), (0.5, 2.0, 0.0), (0.5, 2.0, 1.0), (0.8, 1.2, 0.6))
LONG = "The cat sat on the mat and the dog sat under the table. " * 4


def make_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of `adaptvis generate`, their images written below folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, image in enumerate(make_images(12)):
        image.save(folder / f"{number}.png")
        names.append(f"{number}.png")
    rows: list[dict[str, Any]] = []

    def add(**row: Any) -> None:
        rows.append({"id": len(rows), "max_tokens": 8, **row})

    def adaptive(triple: tuple[float, float, float], **more: Any) -> dict[str, Any]:
        return dict(zip(("alpha_low", "alpha_high", "threshold"), triple, strict=True)) | more

    for i, name in enumerate(names[:4]):
        add(image=name, question=QUESTIONS[i])
        for alpha in ALPHAS[i % 2 :: 2]:
            add(image=name, question=QUESTIONS[i], adaptvis={"alpha": alpha})
    for i, name in enumerate(names[4:8]):
        for triple in TRIPLES:
            add(image=name, question=QUESTIONS[i], adaptvis=adaptive(triple))
    for i, kind in enumerate(("margin", "entropy", "max_prob")):
        more = {"confidence": kind, "confidence_decimals": 2}
        add(image=names[8], question=QUESTIONS[i], adaptvis=adaptive(TRIPLES[i % 2], **more))
    for i, alphas in enumerate(([0.3, 3.0], [2.0], "3.0,0.5")):
        add(image=names[i], question=QUESTIONS[i], adaptvis={"candidates": alphas})
    two, three = names[:2], names[9:12]
    between = "USER: <image>\nThe first picture. <image>\nThe second one. Which? ASSISTANT:"
    for steer in (
        None,
        {"alpha": 0.3},
        {"alpha": 3.0},
        {"alpha": 3.0, "span": "interval", "maps": "all"},
        {"alpha": 0.3, "layers": "1-2", "maps": "1,3", "maps_tokens": 3},
        {"alpha": 3.0, "layers": "0,3"},
        adaptive(TRIPLES[0], maps="all", maps_tokens=2),
        adaptive(TRIPLES[1], layers="0-1", span="interval", maps="all"),
        {"candidates": [3.0, 0.3], "layers": "1-2", "confidence": "margin", "maps": "0"},
    ):
        add(images=two, prompt=between, adaptvis=steer)
        add(images=three, question=QUESTIONS[0], adaptvis=steer)
    for steer in (
        {"alpha": 3.0, "maps": "all"},
        adaptive(TRIPLES[0], maps="all"),
        {"mode": "off", "maps": "all", "maps_tokens": 20},
        {"candidates": [0.3, 3.0]},
    ):
        add(question="No picture at all. " + QUESTIONS[1], adaptvis=steer)
        add(image=names[3], question=LONG + QUESTIONS[2], adaptvis=steer)
        # The prompt ends with the picture: the last prompt token is an image position.
        add(image=names[5], prompt="USER: what is this? <image>", adaptvis=steer)
    # Placeholders that are typed text, and chats in all forms that vLLM takes.
    typed = "Is the word <image> in it, or<image>?"
    shown = {"type": "image_url", "image_url": {"url": names[6]}}
    chats: tuple[list[dict[str, Any]], ...] = (
        [{"role": "user", "content": [shown, QUESTIONS[0]]}],
        [{"role": "user", "content": [typed, shown]}],
        [{"role": "user", "content": typed}],
        [{"role": "user"}, {"role": "user", "content": [shown, {"type": "text", "text": typed}]}],
        [
            {"role": "user", "content": [{"image_url": names[7]}, shown, "Compare."]},
            {"role": "assistant", "content": None},
            {"role": "user", "content": [{"type": "text", "text": None}, QUESTIONS[1]]},
        ],
        [
            {"role": "user", "content": [{"type": "input_image", "image_url": names[6]}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]},
            {"role": "user", "content": [{"type": "input_text", "text": QUESTIONS[2]}]},
        ],
    )
    for steer in ({"alpha": 3.0}, adaptive(TRIPLES[0])):
        add(image=names[6], question=typed, adaptvis=steer)
        add(images=two, prompt=f"USER: <image>{typed} ASSISTANT:", adaptvis=steer)
        for chat in chats:
            add(messages=chat, adaptvis=steer)
    for steer in (
        {"alpha": 3.0, "heads": "0.1-2,2.*,3.0"},
        adaptive(TRIPLES[0], heads=["1-2.3", "0.2"]),
        {"alpha": 20.0, "rule": "add_log"},
        {"alpha": -0.8, "rule": "pai", "rows": "generated"},
        adaptive(TRIPLES[1], options=["left", "right", "under"], rows="generated"),
        {"candidates": [3.0, 0.3], "options": "left,right", "heads": "3.*"},
    ):
        add(image=names[4], question=QUESTIONS[0], adaptvis=steer)
    add(images=two, prompt=between, adaptvis={"alpha": 3.0, "images": "1"})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
