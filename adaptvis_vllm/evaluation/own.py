"""A user's own questions: JSONL or Parquet with `question`, `image`, `answer` and `choices`.

Also a folder of such files, each of which is a split, as `data/spatial`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation import need
from adaptvis_vllm.evaluation.question import Benchmark, Question, Scorer, Source, chance_of
from adaptvis_vllm.evaluation.scoring import contains
from adaptvis_vllm.media import is_url
from adaptvis_vllm.rows import read_lines

SUFFIXES = (".jsonl", ".parquet")
FIELDS = ("id", "question", "prompt", "image", "images", "answer", "choices")
GROUPS_MAX = 12  # a field with more values is no group


def from_path(path: Path, scorer: Scorer = contains) -> Benchmark:
    """A file, or a folder of files; ValueError names file, row and field."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        if not files:
            raise ValueError(f"{path} holds no {' or '.join(SUFFIXES)} files")
    elif path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}")
        files = [path]
    else:
        raise ValueError(f"no such file or folder: {path}")
    questions: list[Question] = []
    splits = {}
    for file in files:
        found = list(_read(file))
        splits[file.stem] = tuple(range(len(questions), len(questions) + len(found)))
        questions += found
    return Benchmark(
        name=path.resolve().stem,
        questions=tuple(questions),
        scorer=scorer,
        chance=chance_of(questions),
        splits=splits if len(files) > 1 else {},
        split="" if len(files) > 1 else "all",
        groups=groups_of(questions),
    )


def _read(path: Path) -> Iterator[Question]:
    names = set()
    rows = parquet_rows(path) if path.suffix == ".parquet" else read_lines(path)
    number = 0
    for number, row in enumerate(rows, 1):
        try:
            question = parse(row, path.parent, str(number))
            if question.id in names:
                raise ValueError(f"the id {question.id!r} occurs twice")
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        names.add(question.id)
        yield question
    if not number:
        raise ValueError(f"{path} holds no questions")


def parquet_rows(path: Path) -> Iterator[Any]:
    need("pyarrow")
    import pyarrow
    import pyarrow.parquet as pq

    from adaptvis_vllm.batch.inputs import without_nulls

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from (without_nulls(row) for row in batch.to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error!s:.200}") from None


def parse(row: Any, folder: Path, name: str) -> Question:
    """One row. folder: what paths are relative to. name: the id if it has none."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"it must be an object, not {type(row).__name__}")
    question, prompt = row.get("question"), row.get("prompt")
    if question is None and prompt is None:
        raise ValueError("question (or prompt) is missing")
    for field, value in (("question", question), ("prompt", prompt)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise ValueError(f"{field} must be a text, not {value!r:.60}")
    answers = _texts("answer", row.get("answer"))
    return Question(
        id=str(row.get("id", name)),
        images=_images(row, folder),
        question=str(prompt if question is None else question),
        answer=answers,
        choices=() if row.get("choices") is None else _texts("choices", row["choices"]),
        prompt=prompt,
        meta={"answer": answers[0].lower()} | {k: v for k, v in row.items() if k not in FIELDS},
    )


def _images(row: Mapping[str, Any], folder: Path) -> tuple[Source, ...]:
    if (row.get("image") is None) == (row.get("images") is None):
        raise ValueError("exactly one of image and images is needed")
    field = "image" if row.get("image") is not None else "images"
    given = row[field] if isinstance(row[field], list) else [row[field]]
    if not given:
        raise ValueError(f"{field} is empty")
    return tuple(_image(source, folder, field) for source in given)


def _image(source: Any, folder: Path, field: str) -> Source:
    if isinstance(source, Mapping):  # how Hugging Face data sets store pictures in Parquet
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes) and source:
        return source
    if not isinstance(source, str) or not source:
        raise ValueError(f"{field} must be a path, URL, data URI or bytes, not {source!r:.60}")
    if is_url(source):
        return source
    return (folder / source).resolve()


def _texts(field: str, value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list | tuple) else [value]
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError(f"{field} must be a text or a list of texts, not {value!r:.60}")
    return tuple(texts)


def groups_of(questions: list[Question]) -> tuple[str, ...]:
    """Fields that every question has and that have a few different values."""
    names = [n for n in questions[0].meta if all(n in q.meta for q in questions)]
    return tuple(n for n in names if 1 < len({str(q.meta[n]) for q in questions}) <= GROUPS_MAX)
