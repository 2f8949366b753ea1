"""VSR: is a caption true of a picture? JSONL of `image_link`, `caption`, `label` (0 or 1).

Sources: arXiv 2205.00363 (the data); the prompt and the scoring are those of
github.com/shiqichen17/AdaptVis. That code also squeezes every picture to 2300 x 4096 pixels
before the model's own processor sees it, which is not done here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adaptvis_vllm.evaluation.datasets.published import published
from adaptvis_vllm.evaluation.datasets.question import Benchmark, Question, Source
from adaptvis_vllm.evaluation.datasets.scoring import judgement, yes_no
from adaptvis_vllm.evaluation.datasets.splits import validation_and_test
from adaptvis_vllm.files.lines import read_lines

FILE = "test.jsonl"
TASK = (
    "Determine whether the description about the spatial relationship is correct or not. "
    "Answer with yes or no: "
)


def from_folder(folder: Path) -> Benchmark:
    """`test.jsonl` and its pictures: below `train2017`, `val2017` or `images`, or beside it."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"no such file: {path}, the questions of vsr")

    def picture(row: Mapping[str, Any]) -> Source:
        inside = urlsplit(row["image_link"]).path.lstrip("/")
        name = Path(inside).name
        places = [folder / inside, folder / "images" / name, folder / name]
        return next((p for p in places if p.is_file()), places[0]).resolve()

    return assemble(read_lines(path), str(path), picture)


def assemble(rows: Iterable[Any], where: str, picture: Any) -> Benchmark:
    """rows: of the columns above. where: for messages. picture: row -> its source."""
    questions = []
    for number, row in enumerate(rows):
        try:
            questions.append(_question(number, row, picture))
        except ValueError as error:
            raise ValueError(f"{where}, row {number}: {error}") from None
    if not questions:
        raise ValueError(f"{where} holds no questions")
    return benchmark_of(tuple(questions))


def benchmark_of(questions: tuple[Question, ...]) -> Benchmark:
    return Benchmark(
        name="vsr",
        questions=questions,
        scorer=yes_no,
        metrics=judgement,
        preset="vsr",
        published=published("vsr"),
        chance=0.5,
        splits=validation_and_test(len(questions)),
        groups=("relation",),
    )


def _question(number: int, row: Any, picture: Any) -> Question:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"it must be an object, not {type(row).__name__}")
    for name in ("image_link", "caption"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise ValueError(f"{name} must be a text, not {row.get(name)!r:.60}")
    if row.get("label") not in (0, 1):
        raise ValueError(f"label must be 0 or 1, not {row.get('label')!r:.60}")
    text = TASK + row["caption"]
    return Question(
        id=str(number),
        images=(picture(row),),
        question=text,
        answer="Yes" if row["label"] else "No",
        choices=("yes", "no"),
        prompt=f"User: <image>\n {text} Assistant:",
        meta={"relation": row["relation"]} if row.get("relation") else {},
    )
