"""Boxes of own data and of annotation files: what is read, and the sentence for what is not."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.benchmark_files import write_all

from adaptvis_vllm.diagnosis.annotated import annotated_boxes, annotations_of, objects_of
from adaptvis_vllm.diagnosis.boxes import Boxes, check_inside, own_boxes
from adaptvis_vllm.diagnosis.command import boxes_of, chosen_steering
from adaptvis_vllm.evaluation.datasets import benchmarks
from adaptvis_vllm.evaluation.datasets.question import Question
from adaptvis_vllm.evaluation.datasets.question_files import read_questions
from adaptvis_vllm.options import STEERING

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("ADAPTVIS_SHARED", ROOT.parent / "shared")) / "data/whatsup_prompts"
MUG, TABLE = [2, 3, 10, 12], [0, 10, 40, 30.5]


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Questions of a file of one row with such fields, beside a picture of 40 x 30."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def load(**fields: Any) -> tuple[Question, ...]:
        text = "Where is the mug in relation to the table?"
        row = {"id": "q", "question": text, "answer": "on", "image": "a.png"} | fields
        (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
        return benchmarks.load(None, str(tmp_path / "own.jsonl")).questions

    return load


def as_lists(found: Boxes | None) -> Any:
    assert found is not None
    return [picture.tolist() for picture in found.pictures]


def test_the_named_objects_count(own: Any) -> None:
    found = own_boxes(own(boxes={"dog": [1, 1, 5, 5], "mug": MUG, "table": TABLE})[0])
    assert found == Boxes(found.pictures, ("mug", "table"), True)
    assert as_lists(found) == [[MUG, TABLE]]
    # As words, in any case, with underscores for spaces; several boxes of a name.
    boxes = {"beer_bottle": [[1, 1, 5, 5], [6, 6, 8, 8]], "bee": [1, 1, 5, 5], "Mu": [1, 1, 5, 5]}
    found = own_boxes(own(question="Is the Beer Bottle left of the mug?", boxes=boxes)[0])
    assert found.names == ("beer_bottle",)
    assert as_lists(found) == [[[1, 1, 5, 5], [6, 6, 8, 8]]]


def test_where_no_name_is_in_the_question_all_boxes_count(own: Any) -> None:
    found = own_boxes(own(boxes={"cup": MUG, "desk": TABLE})[0])
    assert (found.names, found.named) == (("cup", "desk"), False)


def test_none(own: Any) -> None:
    for fields in ({}, {"boxes": None}, {"boxes": {}}, {"boxes": {"mug": []}}):
        assert own_boxes(own(**fields)[0]) is None


def test_parquet(own: Any, tmp_path: Path) -> None:
    """A struct has every name in every row, null where there is no such box."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"question": "Where is the mug?", "answer": "on", "image": str(tmp_path / "a.png")}
    own()
    boxes = [{"mug": MUG}, {"table": TABLE}, None]
    table = pa.Table.from_pylist([row | {"boxes": box} for box in boxes])
    pq.write_table(table, tmp_path / "own.parquet")
    questions = benchmarks.load(None, str(tmp_path / "own.parquet")).questions
    check_inside(questions)
    first, second, third = map(own_boxes, questions)
    assert (as_lists(first), first.named) == ([[MUG]], True)
    assert (as_lists(second), second.named) == ([[TABLE]], False)
    assert third is None


def test_several_pictures(own: Any) -> None:
    images = {"image": None, "images": ["a.png", "a.png"]}
    found = own_boxes(own(**images, boxes=[{"mug": MUG}, {}])[0])
    assert as_lists(found) == [[MUG], []]
    with pytest.raises(
        ValueError, match="boxes must be an object of names and boxes, or a list of 2"
    ):
        own_boxes(own(**images, boxes={"mug": MUG})[0])
    with pytest.raises(ValueError, match=r"boxes\[1\].mug must lie in the picture"):
        check_inside(own(**images, boxes=[{}, {"mug": [0, 0, 50, 9]}]))


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([MUG], "boxes must be an object of names and boxes, not"),
        ("mug", "boxes must be an object of names and boxes, not 'mug'"),
        ({"mug": [1, 2, 3]}, "boxes.mug must be [x0, y0, x1, y1], finite numbers"),
        ({"mug": "1,2,3,4"}, "boxes.mug must be [x0, y0, x1, y1]"),
        ({"mug": {"x": 1}}, "boxes.mug must be"),
        ({"mug": [1, 2, 3, None]}, "boxes.mug must be"),
        ({"mug": [1, 2, 3, True]}, "boxes.mug must be"),
        ({"mug": [1, 2, 3, float("nan")]}, "boxes.mug must be"),
        ({"mug": [1, 2, 3, 1e999]}, "boxes.mug must be"),
        ({"mug": [1, 2, 3, 10**400]}, "boxes.mug must be"),
        ({"mug": [MUG, [1, 2]]}, "boxes.mug must be"),
        ({"mug": [5, 5, 5, 9]}, "boxes.mug must have x0 < x1 and y0 < y1"),
        ({"mug": [5, 9, 8, 2]}, "boxes.mug must have x0 < x1 and y0 < y1"),
        ({"mug": [20, 20, 15, 8]}, "boxes.mug must have x0 < x1"),  # x, y, width, height
        ({"dog": [5, 9, 8, 2]}, "boxes.dog must have x0 < x1"),  # not named by the question
        ({"mug": [1, 2, 42, 9]}, "boxes.mug must lie in the picture, which has 40 x 30 pixels"),
        ({"mug": [-3, 2, 20, 9]}, "boxes.mug must lie in the picture"),
        ({"mug": [100, 100, 120, 120]}, "boxes.mug must lie in the picture"),
    ],
)
def test_bad_boxes_are_told_with_file_question_and_field(
    own: Any, tmp_path: Path, boxes: Any, reason: str
) -> None:
    questions = own(boxes=boxes)
    benchmark = benchmarks.load(None, str(tmp_path / "own.jsonl"))
    with pytest.raises(ValueError, match="question q: ") as found:
        boxes_of(benchmark, None, questions)
    assert str(found.value).startswith(f"{tmp_path / 'own.jsonl'}, row 1, question q: ")
    assert reason in str(found.value)


def test_a_rounded_box_may_leave_its_picture_by_a_pixel(own: Any) -> None:
    check_inside(own(boxes={"mug": [-0.4, 0, 40.5, 30.9]}))


def test_the_shipped_scenes_name_two_of_their_boxes() -> None:
    data = ROOT / "data/spatial"
    benchmark = benchmarks.load(None, str(data))
    for question in benchmark.questions[::40]:
        found = own_boxes(question)
        assert found is not None
        assert set(found.names) == {question.meta["subject"], question.meta["reference"]}
        assert found.named


# COCO and Visual Genome


@pytest.fixture
def whatsup(tmp_path: Path) -> Path:
    """coco_two and vg_two ask for a dog and a cat in pictures 139, 140 and 141."""
    folder = write_all(tmp_path / "data")
    (folder / "annotations").mkdir()
    return folder


def coco(*annotations: Any) -> dict[str, Any]:
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    return {"images": [], "annotations": list(annotations), "categories": categories}


def one(picture: int, category: int, box: Any) -> dict[str, Any]:
    outline = {"segmentation": [[1, 2, 3]], "iscrowd": 0}
    return {"id": 1, "image_id": picture, "category_id": category, "bbox": box, **outline}


def test_coco(whatsup: Path) -> None:
    path = whatsup / "annotations/instances_val2017.json"
    assert annotations_of("coco_two", str(whatsup)) is None
    path.write_text(
        json.dumps(
            coco(
                one(139, 18, [1, 2, 3, 4]),
                one(139, 18, [10, 10, 5, 5]),
                one(139, 17, [0, 0, 2.5, 2]),
                one(139, 17, [0, 0, 0, 2]),  # no area
                one(140, 18, [1, 2, 3, 4]),  # and no cat
                one(7, 99, "of another picture"),
            )
        )
    )
    assert annotations_of("vg_two", str(whatsup)) is None
    assert annotations_of("coco_two", str(whatsup)) == path
    benchmark = benchmarks.load("coco_two", str(whatsup))
    found, notes = boxes_of(benchmark, str(whatsup), benchmark.questions)
    assert found[1:] == [None, None]
    assert found[0].names == ("dog", "cat")
    assert as_lists(found[0]) == [[[1, 2, 4, 6], [10, 10, 15, 15], [0, 0, 2.5, 2]]]
    assert notes == [f"Boxes are those of {path}: all instances that bear an object's name."]
    asked = benchmarks.load("coco_one", str(whatsup)).questions
    assert [found and found.names for found in annotated_boxes(path, asked)] == [("dog",)] * 2


def test_visual_genome(whatsup: Path) -> None:
    def thing(names: list[str], *box: float) -> dict[str, Any]:
        return {
            "object_id": 1,
            "names": names,
            "synsets": [],
            **dict(zip("xywh", box, strict=True)),
        }

    path = whatsup / "objects.json"
    pictures = [
        {"image_id": 139, "objects": [thing(["Dogs"], 1, 2, 3, 4), thing(["cat"], 0, 0, 9, 9)]},
        {"image_id": 1, "objects": [{"of": "another picture"}]},
        {"id": 141, "objects": [thing(["dog", "puppy"], 1, 2, 3, 4), thing(["hat"], 1, 1, 1, 1)]},
    ]
    path.write_text(json.dumps(pictures))
    benchmark = benchmarks.load("vg_two", str(whatsup))
    found, _ = boxes_of(benchmark, str(whatsup), benchmark.questions)
    assert as_lists(found[0]) == [[[1, 2, 4, 6], [0, 0, 9, 9]]]
    assert found[1:] == [None, None]
    # An adjective that the annotators left out, the other number, and names that hold others.
    text = "Where are the big brown dogs in relation to the top hat? Answer with left or right."
    asked = Question("1", (Path("141.jpg"),), text, "left")
    assert objects_of(asked) == ("big brown dogs", "top hat")
    assert as_lists(annotated_boxes(path, [asked])[0]) == [[[1, 2, 4, 6], [1, 1, 2, 2]]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("coco", "{", "is not JSON"),
        ("coco", "[1]", "must be COCO's, with lists of annotations and categories"),
        ("coco", "{}", "must be COCO's"),
        ("coco", coco(one(139, 99, [1, 2, 3, 4])), "annotations[0], of question 0: category_id 99"),
        ("coco", coco(one(139, 18, [1, 2, 3])), "annotations[0], of question 0: bbox must be four"),
        ("coco", coco(one(140, 18, [1, 2, 3, float("nan")])), "of question 1: bbox must be four"),
        ("vg", "{}", "must be Visual Genome's, a list of pictures"),
        ("vg", "[5]", "entry 0 must have image_id and a list of objects"),
        (
            "vg",
            [{"image_id": 139, "objects": [{"names": "dog"}]}],
            "objects[0], of question 0: names",
        ),
        ("vg", [{"image_id": 139, "objects": [{"names": ["dog"], "x": 1}]}], "x, y, w, h must be"),
    ],
)
def test_bad_annotations_are_told_with_file_entry_and_question(
    whatsup: Path, name: str, content: Any, reason: str
) -> None:
    benchmark = benchmarks.load(f"{name}_two", str(whatsup))
    place = {"coco": "annotations/instances_val2017.json", "vg": "objects.json"}[name]
    path = whatsup / place
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=str(path)) as found:
        boxes_of(benchmark, str(whatsup), benchmark.questions)
    assert reason in str(found.value)


def test_every_published_question_names_its_objects() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"the published question files are not in {SHARED}")
    for path in [*SHARED.glob("COCO*.jsonl"), *SHARED.glob("VG*.jsonl")]:
        count = 2 if "two_obj" in path.name else 1
        for asked in read_questions(path):
            question = Question(asked.id, (b"",), asked.question, asked.answer)
            assert len(objects_of(question)) == count


def test_steering_is_chosen_as_eval_chooses_it() -> None:
    def chosen(preset: str | None, **given: Any) -> Any:
        benchmark = benchmarks.load(None, str(ROOT / "data/spatial"))
        object.__setattr__(benchmark, "preset", preset)
        return chosen_steering(Namespace(**dict.fromkeys(STEERING) | given), benchmark)

    assert chosen(None) == ("", None)
    method, steering = chosen(None, alpha=4.0)
    assert (method, steering.mode, steering.alpha) == ("scaling", "scaling", 4)
    assert chosen("controlled_a")[1].mode == "adaptive"
    assert chosen("vsr")[1].mode == "scaling"
    assert chosen("controlled_a", alpha=2.0)[1].alpha == 2
