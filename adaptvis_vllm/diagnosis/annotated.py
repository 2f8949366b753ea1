"""Boxes for What'sUp's questions from the annotation files of COCO and Visual Genome.

COCO: `annotations/instances_val2017.json`. Visual Genome: `objects.json`. An object has the boxes
of all instances that bear its name, crowds included; a question with an object that has none has no
boxes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptvis_vllm.diagnosis.boxes import Boxes, is_number
from adaptvis_vllm.evaluation.datasets.question import Question

COCO, VG = "annotations/instances_val2017.json", "objects.json"
FILES = {"coco_one": COCO, "coco_two": COCO, "vg_one": VG, "vg_two": VG}
_ASKED = re.compile(
    r"Where (?:is|are) the (?P<subject>.+?) in (?:relation to the (?P<reference>.+?)|the photo)\?"
)
_VG_IDS = ("image_id", "id")  # in today's `objects.json`, in its first version
_COCO_NAMES = {"hair dryer": "hair drier"}  # in the questions, in COCO
# (picture id, name in lower case) -> boxes
_Found = dict[tuple[int, str], list[list[float]]]


def annotations_of(benchmark: str, data: str | None) -> Path | None:
    """The file, where the folder of a benchmark's data has it."""
    if data is None or benchmark not in FILES:
        return None
    path = Path(data) / FILES[benchmark]
    return path if path.is_file() else None


def annotated_boxes(path: Path, questions: Sequence[Question]) -> list[Boxes | None]:
    """[len(questions)]; None where an object of the question is not annotated.

    ValueError names the file, its entry and the question of what has another form.
    """
    asked = [(_picture(q), objects_of(q)) for q in questions]
    wanted = {
        picture: question.id
        for (picture, _), question in zip(asked, questions, strict=True)
        if picture is not None
    }
    coco = path.name == Path(COCO).name
    found = _coco(path, wanted) if coco else _vg(path, wanted)
    spellings = _coco_names if coco else _vg_names
    return [_chosen(found, picture, names, spellings) for picture, names in asked]


def objects_of(question: Question) -> tuple[str, ...]:
    """The one or two objects that a question of What'sUp asks about."""
    match = _ASKED.search(question.question)
    return tuple(name for name in match.groups() if name) if match else ()


def _picture(question: Question) -> int | None:
    """The id that is a picture's file name."""
    source = question.images[0]
    name = source.stem if isinstance(source, Path) else ""
    return int(name) if name.isdecimal() else None


def _chosen(
    found: _Found,
    picture: int | None,
    names: Sequence[str],
    spellings: Callable[[str], Iterator[str]],
) -> Boxes | None:
    if picture is None or not names:
        return None
    out = []
    for name in names:
        boxes = next((b for n in spellings(name.lower()) if (b := found.get((picture, n)))), None)
        if boxes is None:
            return None
        out += boxes
    return Boxes((np.array(out, float),), tuple(names))


def _coco_names(name: str) -> Iterator[str]:
    yield _COCO_NAMES.get(name, name)


def _vg_names(name: str) -> Iterator[str]:
    """The name, then without its first words ("green trees": "trees"), in either number."""
    words = name.split()
    for first in range(len(words)):
        rest = " ".join(words[first:])
        yield rest
        yield rest.removesuffix("s") if rest.endswith("s") else rest + "s"


def _coco(path: Path, wanted: Mapping[int, str]) -> _Found:
    content = _read(path, _without_outlines)
    content = content if isinstance(content, Mapping) else {}
    lists: dict[str, Any] = {n: content.get(n) for n in ("annotations", "categories")}
    if not all(isinstance(value, list) for value in lists.values()):
        raise ValueError(f"{path} must be COCO's, with lists of annotations and categories")
    names = {}
    for number, entry in enumerate(lists["categories"]):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{path}, categories[{number}] has no name")
        names[entry.get("id")] = entry["name"].lower()
    found: _Found = {}
    for number, entry in enumerate(lists["annotations"]):
        picture = _id(entry, "image_id") if isinstance(entry, Mapping) else -1
        if picture not in wanted:
            continue
        where = f"{path}, annotations[{number}], of question {wanted[picture]}"
        if entry.get("category_id") not in names:
            raise ValueError(f"{where}: category_id {entry.get('category_id')!r} is no category")
        _add(found, picture, names[entry["category_id"]], entry.get("bbox"), f"{where}: bbox")
    return found


def _vg(path: Path, wanted: Mapping[int, str]) -> _Found:
    def reduced(entry: dict[str, Any]) -> dict[str, Any] | None:
        """Of other pictures nothing: the file of all has some hundred megabytes."""
        return None if "objects" in entry and _id(entry, *_VG_IDS) not in wanted else entry

    content = _read(path, reduced)
    if not isinstance(content, list):
        raise ValueError(f"{path} must be Visual Genome's, a list of pictures with their objects")
    found: _Found = {}
    for number, entry in enumerate(content):
        if entry is None:
            continue
        if not isinstance(entry, Mapping) or not isinstance(entry.get("objects"), list):
            raise ValueError(f"{path}, entry {number} must have image_id and a list of objects")
        picture = _id(entry, *_VG_IDS)
        for place, thing in enumerate(entry["objects"]):
            where = f"{path}, entry {number}, objects[{place}], of question {wanted[picture]}"
            names = thing.get("names") if isinstance(thing, Mapping) else None
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise ValueError(f"{where}: names must be a list of texts, not {names!r:.60}")
            box = [thing.get(side) for side in "xywh"]
            for name in dict.fromkeys(n.lower().strip() for n in names):
                _add(found, picture, name, box, f"{where}: x, y, w, h")
    return found


def _add(found: _Found, picture: int, name: str, box: Any, where: str) -> None:
    """x, y, width, height. What has no area, as some annotations do, is none."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(f"{where} must be four finite numbers, not {box!r:.80}")
    x, y, width, height = map(float, box)
    if width > 0 and height > 0:
        found.setdefault((picture, name), []).append([x, y, x + width, y + height])


def _id(entry: Mapping[str, Any], *fields: str) -> int:
    """Of the picture, in the first field that there is; -1 where there is none."""
    found = next((entry[name] for name in fields if name in entry), None)
    return found if isinstance(found, int) else -1


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _read(path: Path, hook: Callable[[dict[str, Any]], Any]) -> Any:
    """hook: called for every object of the file, inner ones first; what it returns is kept."""
    try:
        return json.loads(path.read_bytes(), object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error!s:.100}") from None
