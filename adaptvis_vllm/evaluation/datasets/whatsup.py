"""What'sUp in the files of AdaptVis' code: Controlled_Images A and B, COCO_QA and VG_QA.

A folder of annotations, pictures and question files. The i-th question is about the i-th
annotation. Sources: arXiv 2310.19785 and github.com/amitakamath/whatsup_vlms (the data),
github.com/shiqichen17/AdaptVis (the questions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from adaptvis_vllm.evaluation.datasets.published import published
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question, Source, chance_of
from adaptvis_vllm.evaluation.datasets.question_files import Asked, choices_of, read_questions
from adaptvis_vllm.evaluation.datasets.scoring import contains, pairs_and_sets
from adaptvis_vllm.evaluation.datasets.splits import validation_and_test
from adaptvis_vllm.files.lines import loads

_CAPTION = re.compile(
    r"an? (?P<subject>.+?) (?:on|under|to the left of|to the right of|in front of|behind) an? "
    r"(?P<reference>.+)",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"Where (?:is|are) the (?P<subject>.+?) in relation to the (?P<reference>.+?)\?"
)


@dataclass(frozen=True)
class Part:
    """One of the six data sets.

    annotation: its file. images: name of a picture's file, where the annotation has an id.
    relations: (text in the name or caption, relation), the first that occurs; other: else.
    opposites: relations that make pairs, in A and B. hub: its split in `hub.WHATSUP`.
    """

    name: str
    questions: str
    annotation: str
    hub: str
    asked: str  # its name in `hub.QUESTIONS`
    images: str = ""
    relations: tuple[tuple[str, str], ...] = ()
    other: str = ""
    opposites: tuple[tuple[str, str], ...] = ()


PARTS = {
    part.name: part
    for part in (
        Part(
            "controlled_a",
            "Controlled_Images_A_with_answer_four_options.jsonl",
            "controlled_images_dataset.json",
            "Controlled_Images_A",
            "Controlled_A",
            relations=(("left_of", "left"), ("right_of", "right"), ("_on_", "on")),
            other="under",
            opposites=(("left", "right"), ("on", "under")),
        ),
        Part(
            "controlled_b",
            "Controlled_Images_B_with_answer_four_options.jsonl",
            "controlled_clevr_dataset.json",
            "Controlled_Images_B",
            "Controlled_B",
            relations=(("left_of", "left"), ("right_of", "right"), ("_in-front_of_", "front")),
            other="behind",
            opposites=(("left", "right"), ("front", "behind")),
        ),
        Part(
            "coco_one",
            "COCO_QA_one_obj_with_answer_four_options.jsonl",
            "coco_qa_one_obj.json",
            "COCO_QA_one_obj",
            "COCO_one_obj",
            images="val2017/{:0>12}.jpg",
        ),
        Part(
            "coco_two",
            "COCO_QA_two_obj_with_answer_four_options.jsonl",
            "coco_qa_two_obj.json",
            "COCO_QA_two_obj",
            "COCO_two_obj",
            images="val2017/{:0>12}.jpg",
            relations=(("left of", "left"), ("right of", "right"), ("above", "above")),
            other="below",
        ),
        Part(
            "vg_one",
            "VG_QA_one_obj_with_answer_six_options.jsonl",
            "vg_qa_one_obj.json",
            "VG_QA_one_obj",
            "VG_one_obj",
            images="vg_images/{}.jpg",
        ),
        Part(
            "vg_two",
            "VG_QA_two_obj_with_answer_six_options.jsonl",
            "vg_qa_two_obj.json",
            "VG_QA_two_obj",
            "VG_two_obj",
            images="vg_images/{}.jpg",
            relations=(
                ("left of", "left"),
                ("right of", "right"),
                ("front of", "front"),
                ("behind", "behind"),
            ),
            other="top",
        ),
    )
}


@dataclass(frozen=True)
class Annotation:
    """What is known of a picture. caption: the right one. path: as annotated; "" on the hub."""

    image: Source
    caption: str
    path: str = ""


def from_folder(name: str, folder: Path, questions: Path | None = None) -> Benchmark:
    """One of PARTS. questions: its file, or the folder of them; else looked for in `folder`.

    ValueError, in one sentence, for what is missing or of another form.
    """
    part = PARTS[name]
    annotations = _read_annotations(part, folder)
    return assemble(
        part, read_questions(question_file(part.questions, folder, questions)), annotations
    )


def question_file(name: str, folder: Path | None, given: Path | None) -> Path:
    """Where a question file is: given, or in given, or in the data's folder or its `prompts`."""
    if given is not None:
        return given / name if given.is_dir() else given
    places = [] if folder is None else [folder, folder / "prompts", folder.parent / "prompts"]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ValueError(
        f"the question file {name} is neither in {folder} nor in a folder prompts in or beside "
        "it; --questions says where it is"
    )


def assemble(part: Part, asked: Sequence[Asked], annotations: Sequence[Annotation]) -> Benchmark:
    """The benchmark of questions and pictures in the same order."""
    if len(asked) != len(annotations):
        raise ValueError(
            f"{part.name} has {len(asked)} questions but {len(annotations)} annotated pictures"
        )
    return benchmark_of(
        part, tuple(_question(part, a, n) for a, n in zip(asked, annotations, strict=True))
    )


def benchmark_of(part: Part, questions: tuple[Question, ...]) -> Benchmark:
    return Benchmark(
        name=part.name,
        questions=questions,
        scorer=contains,
        metrics=pairs_and_sets(part.opposites) if part.opposites else None,
        preset=part.name,
        published=published(part.name),
        chance=chance_of(questions),
        splits=validation_and_test(len(questions)),
        split="test",
        groups=("relation",),
    )


def without_pictures(part: Part, question: Question) -> Question:
    """A question of a part with the relation and the set that its own words tell."""
    meta = {"relation": question.answers[0].lower(), **question.meta}
    if part.opposites and "set" not in meta:
        found = _ASKED.match(question.question)
        if found is None or meta["relation"] not in {r for pair in part.opposites for r in pair}:
            raise ValueError(
                f"question {question.id} is none of {part.name}: {question.question!r:.80}, "
                f"{question.answers[0]!r:.40}"
            )
        meta["set"] = (found["subject"].lower(), found["reference"].lower())
    choices = question.choices or choices_of(question.question)
    return replace(question, choices=choices, meta=meta)


def _question(part: Part, asked: Asked, annotation: Annotation) -> Question:
    meta: dict[str, Any] = {"relation": _relation(part, annotation)}
    if part.opposites:
        meta["set"] = _set(annotation)
    return Question(
        id=asked.id,
        images=(annotation.image,),
        question=asked.question,
        answer=asked.answer,
        choices=asked.choices,
        prompt=asked.prompt,
        meta=meta,
    )


def _relation(part: Part, annotation: Annotation) -> str:
    if not part.relations:
        return annotation.caption.split()[-1].lower()
    # Without a file's name, the caption: "to the left of" becomes what the name would hold.
    text = annotation.path or annotation.caption
    if part.opposites and not annotation.path:
        text = text.replace(" in front ", " in-front ").replace(" ", "_")
    return next((name for needle, name in part.relations if needle in text), part.other)


def _set(annotation: Annotation) -> tuple[str, str]:
    """The two objects of a picture in four relations, from its file's name or its caption."""
    if annotation.path:
        parts = Path(annotation.path).name.split("_")
        return parts[0], parts[-1].rpartition(".")[0]
    found = _CAPTION.fullmatch(annotation.caption.strip().rstrip("."))
    if found is None:
        raise ValueError(f"the caption {annotation.caption!r} names no two objects")
    return found["subject"].lower(), found["reference"].lower()


def _read_annotations(part: Part, folder: Path) -> list[Annotation]:
    path = folder / part.annotation
    if not path.is_file():
        raise ValueError(f"no such file: {path}, the annotations of {part.name}")
    try:
        rows = loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list, not {type(rows).__name__}")
    read = _with_id if part.images else _with_path
    out = []
    for number, row in enumerate(rows):
        annotation = read(part, folder, row)
        if annotation is None:
            form = (
                "[image id, right caption, wrong caption]"
                if part.images
                else 'an object with "image_path" and "caption_options"'
            )
            raise ValueError(f"{path}, entry {number} must be {form}, not {row!r:.80}")
        out.append(annotation)
    return out


def _with_path(part: Part, folder: Path, row: Any) -> Annotation | None:
    if not isinstance(row, Mapping):
        return None
    name, captions = row.get("image_path"), row.get("caption_options")
    if not isinstance(name, str) or not _captions(captions):
        return None
    # Published paths begin with "data/", the folder in which the data lies there.
    inside = folder / name.removeprefix("data/")
    image = inside if inside.is_file() else folder / name
    return Annotation((image if image.is_file() else inside).resolve(), captions[0], name)


def _with_id(part: Part, folder: Path, row: Any) -> Annotation | None:
    if not isinstance(row, list) or len(row) < 2 or not _captions(row[1:]):
        return None
    if isinstance(row[0], bool) or not isinstance(row[0], int | str):
        return None
    return Annotation((folder / part.images.format(str(row[0]))).resolve(), row[1])


def _captions(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(c, str) and c for c in value)
