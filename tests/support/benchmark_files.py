"""Tiny data sets in every format that `adaptvis eval` reads, their pictures drawn on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoints.images import make_image
from PIL import Image

RELATIONS_A = {"left_of": "Left", "right_of": "Right", "on": "On", "under": "Under"}
RELATIONS_B = {"left_of": "Left", "right_of": "Right", "in-front_of": "Front", "behind": "Behind"}
WORDS = {
    "left_of": "to the left of",
    "right_of": "to the right of",
    "on": "on",
    "under": "under",
    "in-front_of": "in front of",
    "behind": "behind",
}
OBJECTS = (("beer-bottle", "armchair"), ("mug", "table"))
FOUR = "left, right, on or under"
QUESTIONS = {
    "controlled_a": "Controlled_Images_A_with_answer_four_options.jsonl",
    "controlled_b": "Controlled_Images_B_with_answer_four_options.jsonl",
    "coco_one": "COCO_QA_one_obj_with_answer_four_options.jsonl",
    "coco_two": "COCO_QA_two_obj_with_answer_four_options.jsonl",
    "vg_one": "VG_QA_one_obj_with_answer_six_options.jsonl",
    "vg_two": "VG_QA_two_obj_with_answer_six_options.jsonl",
}


def framed(question: str) -> str:
    return f"<image>\nUSER: {question}\nASSISTANT:"


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def png(seed: int) -> bytes:
    out = io.BytesIO()
    make_image(seed).save(out, "PNG")
    return out.getvalue()


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(seed).save(path)


def write_controlled(folder: Path, part: str) -> None:
    """Two sets of four pictures of A ("a") or B ("b"), questions in `prompts`."""
    relations = RELATIONS_A if part == "a" else RELATIONS_B
    images = "controlled_images" if part == "a" else "controlled_clevr"
    options = FOUR if part == "a" else "left, right, front or behind"
    annotations, questions = [], []
    for subject, reference in OBJECTS:
        for relation, answer in relations.items():
            name = f"{images}/{subject}_{relation}_{reference}.jpeg"
            picture(folder / name, len(questions))
            thing = subject.replace("-", " ")
            captions = [f"A {thing} {WORDS[r]} a {reference}" for r in relations]
            right = captions.pop(list(relations).index(relation))
            annotations.append(
                {"image_path": f"data/{name}", "caption_options": [right, *captions]}
            )
            text = f"Where is the {thing} in relation to the {reference}? Answer with {options}."
            asked = {"id": len(questions), "question": framed(text), "answer": [answer]}
            questions.append(asked)
    name = "controlled_images_dataset.json" if part == "a" else "controlled_clevr_dataset.json"
    (folder / name).write_text(json.dumps(annotations))
    write_lines(folder / "prompts" / QUESTIONS[f"controlled_{part}"], questions)


# By data set: caption, wrong caption, question, answer.
ONE = "Where is the dog in the photo? Answer with left, right, top or bottom."
TWO = "Where is the dog in relation to the cat? Answer with left, right, above, or below."
SIX = (
    "Where is the dog in relation to the cat? \n"
    "Answer with left, right, front, behind, above or below.\n"
)
QA: dict[str, list[tuple[str, str, str, str]]] = {
    "coco_one": [
        ("A photo of a dog on the left", "A photo of a dog on the right", ONE, "Left"),
        ("A photo of a dog on the top", "A photo of a dog on the bottom", ONE, "Top"),
    ],
    "coco_two": [
        (
            "A photo of a dog to the left of a cat",
            "A photo of it to the right of a cat",
            TWO,
            "Left",
        ),
        ("A photo of a dog above a cat", "A photo of a dog below a cat", TWO, "Above"),
        ("A photo of a dog below a cat", "A photo of a dog above a cat", TWO, "Below"),
    ],
    "vg_one": [
        ("A photo of a dog on the bottom", "A photo of a dog on the top", ONE, "Bottom"),
        (
            "A photo of the grass behind",
            "A photo of the grass in front",
            "Where is the grass in the photo? Answer with behind or front.",
            "Behind",
        ),
    ],
    "vg_two": [
        ("A photo of a dog in front of a cat", "A photo of a dog behind a cat", SIX, "Front"),
        ("A photo of a dog behind a cat", "A photo of a dog in front of a cat", SIX, "Behind"),
        ("A photo of a dog above a cat", "A photo of a dog below a cat", SIX, "Above"),
    ],
}


def write_qa(folder: Path, name: str) -> None:
    """COCO_QA or VG_QA: `[image id, right caption, wrong caption]`."""
    coco = name.startswith("coco")
    part = "one" if name.endswith("one") else "two"
    annotations, questions = [], []
    for number, (caption, wrong, question, answer) in enumerate(QA[name]):
        image = 139 + number
        file = f"val2017/{image:012}.jpg" if coco else f"vg_images/{image}.jpg"
        picture(folder / file, number)
        annotations.append([image, caption, wrong])
        questions.append({"id": number, "question": framed(question), "answer": [answer]})
    file = f"{'coco' if coco else 'vg'}_qa_{part}_obj.json"
    (folder / file).write_text(json.dumps(annotations))
    write_lines(folder / "prompts" / QUESTIONS[name], questions)


def vsr_rows() -> list[dict[str, Any]]:
    return [
        {
            "image": f"{number:012}.jpg",
            "image_link": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
            "caption": f"The cat is {relation} the bed.",
            "label": number % 2,
            "relation": relation,
        }
        for number, relation in enumerate(("on", "under", "behind", "on", "left of"))
    ]


def write_vsr(folder: Path) -> None:
    for number, row in enumerate(vsr_rows()):
        picture(folder / "train2017" / row["image"], number)
    write_lines(folder / "test.jsonl", vsr_rows())


def own_rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"own-{number}",
            "image": f"pictures/{number}.png",
            "question": f"Where is the mug? Answer with {FOUR}.",
            "answer": answer,
            "choices": ["left", "right", "on", "under"],
            "familiar": number % 2 == 0,
        }
        for number, answer in enumerate(("left", ["on", "upon"], "under", "right"))
    ]


def write_own(folder: Path) -> Path:
    for number in range(len(own_rows())):
        picture(folder / "pictures" / f"{number}.png", number)
    return write_lines(folder / "own.jsonl", own_rows())


def write_parquet(path: Path) -> Path:
    """The same questions, pictures inside as the hub stores them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        row | {"image": {"bytes": png(number), "path": None}, "answer": [row["answer"]]}
        if isinstance(row["answer"], str)
        else row | {"image": {"bytes": png(number), "path": None}}
        for number, row in enumerate(own_rows())
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_all(folder: Path) -> Path:
    """Every What'sUp data set in one folder, as AdaptVis' code lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in "ab":
        write_controlled(folder, part)
    for name in QA:
        write_qa(folder, name)
    return folder


@contextmanager
def hub_cache(folder: Path) -> Iterator[None]:
    """The library `datasets` keeps what it prepares in `folder`, not in the user's cache."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


def write_hub(folder: Path, source: Path) -> dict[str, Path]:
    """Local copies of the three hub repositories, in their columns, configs and splits.

    source: what `write_all` wrote. Keys: "whatsup", "questions", "vsr".
    """
    from datasets import Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature

    from adaptvis_vllm.evaluation.datasets.whatsup import PARTS

    out = {name: folder / name for name in ("whatsup", "questions", "vsr")}
    for path in out.values():
        path.mkdir(parents=True)
    columns = {"image_options": ImageFeature(), "caption_options": Sequence(Value("string"))}
    for part in PARTS.values():
        rows = json.loads((source / part.annotation).read_text())
        data: dict[str, list[Any]] = {"image_options": [], "caption_options": []}
        for row in rows:
            if part.images:
                file, captions = source / part.images.format(str(row[0])), row[1:]
            else:
                file = source / row["image_path"].removeprefix("data/")
                captions = row["caption_options"]
            data["image_options"].append(Image.open(file))
            data["caption_options"].append(captions)
        table = Dataset.from_dict(data, features=Features(columns))
        (out["whatsup"] / "data").mkdir(exist_ok=True)
        table.to_parquet(out["whatsup"] / "data" / f"{part.hub}-00000-of-00001.parquet")
        asked = [json.loads(line) for line in (source / "prompts" / part.questions).open()]
        (out["questions"] / part.asked).mkdir()
        Dataset.from_list(asked).to_parquet(
            out["questions"] / part.asked / "test-00000-of-00001.parquet"
        )
    splits = [f"      - split: {p.hub}\n        path: data/{p.hub}-*\n" for p in PARTS.values()]
    (out["whatsup"] / "README.md").write_text(
        "---\nconfigs:\n  - config_name: default\n    data_files:\n" + "".join(splits) + "---\n"
    )
    configs = [
        f"  - config_name: {p.asked}\n    data_files:\n      - split: test\n"
        f"        path: {p.asked}/test-*\n"
        for p in PARTS.values()
    ]
    (out["questions"] / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    write_lines(out["vsr"] / "test.jsonl", vsr_rows())
    return out
