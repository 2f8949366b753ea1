"""Data sets as files: every format read, every mistake in them told in one sentence."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_files import (
    QUESTIONS,
    framed,
    hub_cache,
    own_rows,
    write_all,
    write_hub,
    write_lines,
    write_own,
    write_parquet,
    write_vsr,
)

from adaptvis_vllm import AdaptVis, Off, ScalingVis
from adaptvis_vllm.evaluation.answers import check_images
from adaptvis_vllm.evaluation.datasets import benchmarks
from adaptvis_vllm.evaluation.datasets.needed import need
from adaptvis_vllm.evaluation.datasets.question import Benchmark
from adaptvis_vllm.evaluation.datasets.question_files import (
    choices_of,
    parse_question,
    read_questions,
)
from adaptvis_vllm.evaluation.datasets.vsr import TASK
from adaptvis_vllm.evaluation.methods import chosen_methods
from adaptvis_vllm.files.media import load_image
from adaptvis_vllm.options import STEERING

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("ADAPTVIS_SHARED", ROOT.parent / "shared")) / "data/whatsup_prompts"
SIDES = ("left", "right")
# By file: lines, option sets with their numbers, answers with their numbers.
SHARED_FILES: dict[str, tuple[int, dict[tuple[str, ...], int], dict[str, int]]] = {
    QUESTIONS["controlled_a"]: (
        412,
        {(*SIDES, "on", "under"): 412},
        {"Left": 103, "Right": 103, "On": 103, "Under": 103},
    ),
    QUESTIONS["controlled_b"]: (
        408,
        {(*SIDES, "front", "behind"): 408},
        {"Left": 102, "Right": 102, "Front": 102, "Behind": 102},
    ),
    QUESTIONS["coco_one"]: (
        2247,
        {(*SIDES, "top", "bottom"): 2247},
        {"Bottom": 744, "Left": 576, "Right": 564, "Top": 363},
    ),
    QUESTIONS["coco_two"]: (
        440,
        {(*SIDES, "above", "below"): 440},
        {"Left": 150, "Right": 129, "Above": 86, "Below": 75},
    ),
    QUESTIONS["vg_one"]: (
        1160,
        {(*SIDES, "front", "behind", "top", "bottom"): 1158, ("behind", "front"): 2},
        {"Left": 392, "Right": 376, "Bottom": 198, "Top": 192, "Behind": 2},
    ),
    QUESTIONS["vg_two"]: (
        291,
        {
            (*SIDES, "front", "behind", "above", "below"): 285,
            (*SIDES, "front", "behind", "top", "bottom"): 6,
        },
        {"Right": 137, "Left": 127, "Front": 19, "Behind": 5, "Above": 3},
    ),
    "VSR_with_answer.jsonl": (629, {(): 629}, {}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("whatsup") / "data")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published question files are not in {SHARED}")
@pytest.mark.parametrize("name", SHARED_FILES)
def test_published_question_files(name: str) -> None:
    count, choices, answers = SHARED_FILES[name]
    asked = read_questions(SHARED / name)
    lines = (SHARED / name).read_text().splitlines()
    assert len(asked) == len(lines) == count
    assert Counter(a.choices for a in asked) == choices
    if answers:
        assert Counter(a.answer[0] for a in asked) == answers
        offered = Counter(a.answer[0].lower() in a.choices for a in asked)
        # One question of VG asks for "top, or bottom" and is answered with "Above".
        assert offered[True] >= count - 1
    for question, line in zip(asked, lines, strict=True):
        assert question.prompt == json.loads(line)["question"]
        assert question.question in question.prompt
        assert "<image>" not in question.question
        assert "USER" not in question.question
        assert question.question == question.question.strip()


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("Answer with left, right, on or under.", ("left", "right", "on", "under")),
        ("Answer with left, right, on, or under.", ("left", "right", "on", "under")),
        ("\nAnswer with left, right, top or bottom..", ("left", "right", "top", "bottom")),
        ("Answer with left or right.\nOption A photo of a man.", ("left", "right")),
        ("Answer with one word or phrase.", ()),
        ("Answer with care.", ()),
        ("Where is it?", ()),
    ],
)
def test_choices(text: str, choices: tuple[str, ...]) -> None:
    assert choices_of(text) == choices


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be an object"),
        ({"id": 0, "question": framed("x")}, '"answer"'),
        ({"id": 0, "question": "x", "answer": ["On"]}, "USER"),
        ({"id": 0, "question": framed("x"), "answer": []}, "answer must be"),
        ({"id": 0, "question": framed("x"), "answer": [""]}, "answer must be"),
        ({"id": 0, "question": framed("x"), "answer": 3}, "answer must be"),
    ],
)
def test_lines_that_are_no_questions(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_question(value)


RELATIONS = {
    "controlled_a": ["left", "right", "on", "under"] * 2,
    "controlled_b": ["left", "right", "front", "behind"] * 2,
    "coco_one": ["left", "top"],
    "coco_two": ["left", "above", "below"],
    "vg_one": ["bottom", "behind"],
    "vg_two": ["front", "behind", "top"],
}


def check(benchmark: Benchmark, name: str) -> None:
    assert benchmark.name == benchmark.preset == name
    assert [q.meta["relation"] for q in benchmark.questions] == RELATIONS[name]
    check_images(benchmark.questions)
    assert [p.method for p in benchmark.published[:3]] == ["base", "scaling", "adaptive"]
    for question in benchmark.questions:
        assert question.prompt == framed(question.question) or "\n" in question.prompt
        assert question.answers[0].lower() in question.choices or name == "vg_two"
    if name.startswith("controlled"):
        sets = Counter(q.meta["set"] for q in benchmark.questions)
        assert list(sets.values()) == [4, 4]
        assert benchmark.chance == 0.25


@pytest.mark.parametrize("name", RELATIONS)
def test_whatsup_from_a_folder(data: Path, name: str) -> None:
    check(benchmarks.load(name, str(data)), name)


def test_default_split_is_the_test_split(data: Path) -> None:
    benchmark = benchmarks.load("controlled_a", str(data))
    assert (len(benchmark.select()), len(benchmark.select("validation"))) == (7, 1)
    assert len(benchmark.select("all")) == 8
    with pytest.raises(ValueError, match="has no split 'train'; it has all, validation, test"):
        benchmark.select("train")


def test_sets_by_name_and_by_caption_agree(data: Path, tmp_path: Path) -> None:
    """The hub's copies have captions only; the same pictures, questions and sets follow."""
    with hub_cache(tmp_path / "cache"):
        compare_with_hub(data, write_hub(tmp_path / "hub", data))


def compare_with_hub(data: Path, folders: dict[str, Path]) -> None:
    for name in RELATIONS:
        online = benchmarks.load(
            name, f"hf:{folders['whatsup']}", questions=f"hf:{folders['questions']}"
        )
        check(online, name)
        local = benchmarks.load(name, str(data))
        assert online.splits == local.splits
        for mine, theirs in zip(local.questions, online.questions, strict=True):
            assert (mine.question, mine.prompt, mine.answers) == (
                theirs.question,
                theirs.prompt,
                theirs.answers,
            )
            first, second = (load_image(q.images[0], Path(), "image") for q in (mine, theirs))
            assert first.size == second.size
        if name.startswith("controlled"):
            groups = [
                [[q.meta["set"] for q in b.questions].index(q.meta["set"]) for q in b.questions]
                for b in (local, online)
            ]
            assert groups[0] == groups[1] == [0, 0, 0, 0, 4, 4, 4, 4]
    vsr = benchmarks.load("vsr", f"hf:{folders['vsr']}")
    assert vsr.questions[0].images[0] == "http://images.cocodataset.org/train2017/000000000000.jpg"
    asked = f"hf:{folders['questions']}"
    part = next((folders["whatsup"] / "data").glob("Controlled_Images_A-*"))
    (folders["questions"] / "VG_one_obj/test-00000-of-00001.parquet").rename(part)
    where = f"hf:{folders['whatsup']}"
    with pytest.raises(ValueError, match="no column 'image_options'; it has id, question, answer"):
        benchmarks.load("controlled_a", where, questions=asked)
    for name in ("vg_one", "vg_two"):
        next((folders["whatsup"] / "data").glob(f"VG_QA_{name[3:]}_obj-*")).unlink()
        with pytest.raises(ValueError, match=r"the data set .* cannot be loaded"):
            benchmarks.load(name, where, questions=asked)


def test_vsr_from_a_folder(tmp_path: Path) -> None:
    write_vsr(tmp_path)
    benchmark = benchmarks.load("vsr", str(tmp_path))
    check_images(benchmark.questions)
    assert [q.answer for q in benchmark.questions] == ["No", "Yes", "No", "Yes", "No"]
    assert benchmark.questions[1].prompt == (
        f"User: <image>\n {TASK}The cat is under the bed. Assistant:"
    )
    assert benchmark.questions[1].question == f"{TASK}The cat is under the bed."
    assert len(benchmark.select()) == 5
    (tmp_path / "train2017").rename(tmp_path / "images")
    check_images(benchmarks.load("vsr", str(tmp_path)).questions)


def test_own_questions(tmp_path: Path) -> None:
    lines = benchmarks.load(None, str(write_own(tmp_path)))
    table = benchmarks.load(None, str(write_parquet(tmp_path / "own.parquet")))
    for benchmark in (lines, table):
        check_images(benchmark.questions)
        assert [q.id for q in benchmark.questions] == [r["id"] for r in own_rows()]
        assert benchmark.questions[1].answers == ("on", "upon")
        assert benchmark.groups == ("answer", "familiar")
        assert benchmark.chance == 0.25
        assert len(benchmark.select()) == 4
    exact = benchmarks.load(None, str(tmp_path / "own.jsonl"), scorer="exact")
    assert not exact.scorer(exact.questions[0], "left of it")


def test_objects_are_no_groups(tmp_path: Path) -> None:
    """Boxes of things, which few questions have few different ones of."""
    rows = [r | {"boxes": {"mug": [n, 0, 9, 9]}} for n, r in enumerate(own_rows())]
    write_own(tmp_path)
    benchmark = benchmarks.load(None, str(write_lines(tmp_path / "own.jsonl", rows)))
    assert benchmark.groups == ("answer", "familiar")
    assert benchmark.questions[3].meta["boxes"] == {"mug": [3, 0, 9, 9]}


def test_a_folder_of_own_questions_has_splits() -> None:
    """`data/spatial`: the files that the repository ships."""
    benchmark = benchmarks.load(None, str(ROOT / "data/spatial"))
    assert {n: len(i) for n, i in benchmark.splits.items()} == {
        "distractors": 400,
        "plain": 400,
        "shifted": 400,
        "validation": 400,
    }
    assert all(q.meta["kind"] == "shifted" for q in benchmark.select("shifted"))
    with pytest.raises(ValueError, match="needs --split, one of all, distractors, plain"):
        benchmark.select()


def change_own(folder: Path, **fields: Any) -> str:
    write_own(folder)
    row = {k: v for k, v in (own_rows()[0] | fields).items() if v is not None}
    return str(write_lines(folder / "own.jsonl", [*own_rows()[1:], row]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": None}, "row 4: question .* is missing"),
        ({"question": 3}, "row 4: question must be a text, not 3"),
        ({"answer": None}, "row 4: answer must be a text or a list"),
        ({"answer": []}, "row 4: answer must be"),
        ({"answer": ""}, "row 4: answer must be"),
        ({"choices": [1]}, "row 4: choices must be"),
        ({"image": None}, "row 4: exactly one of image and images"),
        ({"images": ["a.png"]}, "row 4: exactly one of image and images"),
        ({"image": 7}, "row 4: image must be a path"),
        ({"id": "own-1"}, "row 4: the id 'own-1' occurs twice"),
    ],
)
def test_wrong_own_rows(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    """They are left out, and the others asked."""
    benchmark = benchmarks.load(None, change_own(tmp_path, **fields))
    (refused,) = benchmark.refused
    assert re.search(message, refused.error)
    assert [q.id for q in benchmark.questions] == ["own-1", "own-2", "own-3"]
    assert benchmark.refused_of("all") == benchmark.refused_of() == [refused]


def test_wrong_folders_and_files(data: Path, tmp_path: Path) -> None:
    cases: list[tuple[str | None, str | None, str]] = [
        ("controled_a", str(data), "did you mean controlled_a"),
        (None, None, "--dataset .* or --data is needed"),
        (None, "hf:x/y", "needs --dataset"),
        (None, str(tmp_path / "no.jsonl"), "no such file or folder"),
        (None, str(tmp_path), "holds no .jsonl or .parquet files"),
        ("controlled_a", str(tmp_path / "no"), "no such folder"),
        ("controlled_a", str(tmp_path), "no such file: .*controlled_images_dataset.json"),
        ("vsr", str(tmp_path), "no such file: .*test.jsonl"),
    ]
    for name, where, message in cases:
        with pytest.raises(ValueError, match=message):
            benchmarks.load(name, where)
    for file, content, message in [
        ("a.txt", "x", "must end in .jsonl or .parquet"),
        ("a.parquet", "x", "is no Parquet file"),
        ("a.jsonl", "{", "row 1: line 1 is not JSON"),
        ("b.jsonl", "[1]", "row 1: line 1 must hold an object"),
        ("c.jsonl", "\n", "holds no questions"),
    ]:
        (tmp_path / file).write_text(content)
        with pytest.raises(ValueError, match=message):
            benchmarks.load(None, str(tmp_path / file))
    annotations = tmp_path / "controlled_images_dataset.json"
    for text, message in [
        ("{", "is not JSON"),
        ("{}", "must hold a list"),
        ('[{"image_path": "a.png"}]', 'entry 0 must be an object with "image_path" and "caption'),
        ("[[1, 2]]", "entry 0 must be an object"),
        ('[{"image_path": "a.png", "caption_options": ["A mug on a table"]}]', "--questions says"),
    ]:
        annotations.write_text(text)
        with pytest.raises(ValueError, match=message):
            benchmarks.load("controlled_a", str(tmp_path))
    asked = str(data / "prompts")
    with pytest.raises(ValueError, match="has 8 questions but 1 annotated pictures"):
        benchmarks.load("controlled_a", str(tmp_path), questions=asked)
    (tmp_path / "coco_qa_one_obj.json").write_text('[["139"]]')
    with pytest.raises(ValueError, match=r"entry 0 must be \[image id, right caption"):
        benchmarks.load("coco_one", str(tmp_path), questions=asked)
    write_lines(tmp_path / "test.jsonl", [{"image_link": "http://x/a.jpg", "caption": "c"}])
    with pytest.raises(ValueError, match="row 0: label must be 0 or 1, not None"):
        benchmarks.load("vsr", str(tmp_path))


def test_missing_and_broken_pictures(tmp_path: Path) -> None:
    benchmark = benchmarks.load(None, change_own(tmp_path, image="pictures/none.png"))
    with pytest.raises(ValueError, match=r"question own-0: image: no such file .*none.png"):
        check_images(benchmark.questions)
    write_own(tmp_path)
    broken = tmp_path / "pictures/2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"question own-2: image: .* is no readable image"):
        check_images(benchmarks.load(None, str(tmp_path / "own.jsonl")).questions)


def test_missing_package_says_what_to_install() -> None:
    need("json")
    with pytest.raises(RuntimeError, match=r"no_such_package is missing: pip install .*\[eval\]"):
        need("json", "no_such_package")


def options(methods: str | None = None, **given: Any) -> Namespace:
    return Namespace(methods=methods, **{name: given.get(name) for name in STEERING})


def plain(preset: str | None = None) -> Benchmark:
    return Benchmark("x", (), lambda question, generation: True, preset=preset)


def test_methods() -> None:
    published = {
        "base": Off(),
        "scaling": ScalingVis(preset="vg_one"),
        "adaptive": AdaptVis(preset="vg_one"),
    }
    assert chosen_methods(options(), plain("vg_one")) == published
    assert chosen_methods(options(preset="vg_one"), plain("coco_one")) == published
    assert list(chosen_methods(options(preset="vsr"), plain())) == ["base", "scaling"]
    assert chosen_methods(options(), plain()) == {"base": Off()}
    assert chosen_methods(options(alpha=2.0), plain("vg_one")) == {
        "base": Off(),
        "scaling": ScalingVis(2.0),
    }
    both = chosen_methods(
        options(alpha=2.0, alpha_low=0.5, alpha_high=1.5, threshold=0.3, layers="0-1"), plain()
    )
    assert both["scaling"] == ScalingVis(2.0, layers="0-1")
    assert both["adaptive"] == AdaptVis(0.5, 1.5, 0.3, layers="0-1")
    rounding = chosen_methods(options(preset="vg_one", confidence_decimals=2), plain())
    assert rounding["adaptive"] == AdaptVis(preset="vg_one", confidence_decimals=2)
    narrowed = chosen_methods(options("base,scaling"), plain("vg_one"))
    assert list(narrowed) == ["base", "scaling"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (options("base,scaled"), "--methods must be among base, scaling, adaptive, not 'scaled'"),
        (options("scaling"), "--methods scaling needs a setting: --alpha, or --preset"),
        (options("adaptive", preset="vsr"), "--methods adaptive needs a setting: --alpha-low"),
        (options(alpha_low=0.5), "alpha_high is missing"),
        (options(alpha=-1.0), "alpha must be a number greater than 0"),
        (options(preset="coco_wo"), "did you mean coco_two"),
    ],
)
def test_wrong_methods(given: Namespace, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen_methods(given, plain())


def test_methods_of_a_preset_file(tmp_path: Path) -> None:
    from adaptvis_vllm.steering.preset import write_preset

    path = tmp_path / "mine.json"
    for params, expected in [
        (AdaptVis(0.5, 2.0, 0.3, confidence="margin"), ["base", "adaptive"]),
        (ScalingVis(4.0), ["base", "scaling"]),
        (Off(), ["base"]),
    ]:
        write_preset(path, params, {})
        found = chosen_methods(options(preset=str(path)), plain("vg_one"))
        assert list(found) == expected
        assert list(found.values())[-1] == params
