"""A user's own questions: JSONL or Parquet with `question`, `image`, `answer` and `choices`.

Also a folder of such files, each of which is a split, as `data/spatial`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation.datasets.needed import need
from adaptvis_vllm.evaluation.datasets.question import (
    Benchmark,
    Question,
    Refused,
    Scorer,
    Source,
    chance_of,
)
from adaptvis_vllm.evaluation.datasets.scoring import contains
from adaptvis_vllm.files.lines import BadRow, check_unicode, dumps, read_lines
from adaptvis_vllm.files.urls import is_url
from adaptvis_vllm.offline.schema import is_null, no_nulls, row_id_of, without_nulls

SUFFIXES = (".jsonl", ".parquet")
FIELDS = ("id", "question", "prompt", "image", "images", "answer", "choices")
GROUPS_MAX = 12  # a field with more values is no group


def from_path(path: Path, scorer: Scorer = contains) -> Benchmark:
    """A file, or a folder of files. Bad rows are left out and listed; ValueError, which names the
    first, for a file of no others."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.name[0] != ".")
        if not files:
            raise ValueError(f"{path} holds no {' or '.join(SUFFIXES)} files")
    elif path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}")
        files = [path]
    else:
        raise ValueError(f"no such file or folder: {path}")
    questions: list[Question] = []
    refused: list[Refused] = []
    splits = {}
    for file in files:
        found = _read(file, refused)
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
        lenient=True,
        refused=tuple(refused),
    )


def _read(path: Path, refused: list[Refused]) -> list[Question]:
    """The file's questions; its bad rows are added to `refused`."""
    found: dict[str, Question] = {}
    bad = []
    rows = parquet_rows(path) if path.suffix == ".parquet" else read_lines(path)
    for number, row in enumerate(rows, 1):
        try:
            question = parse(row, path.parent, str(number))
            if question.id in found:
                raise ValueError(f"the id {question.id!r} occurs twice")
            found[question.id] = replace(question, row=f"{path}, row {number}")
        except ValueError as error:
            row_id = _id(row_id_of(row))
            bad.append(Refused(path.stem, row_id, f"{path.name}, row {number}: {error}"))
    if not found:
        raise ValueError(f"{path.parent / bad[0].error}" if bad else f"{path} holds no questions")
    refused += bad
    return list(found.values())


def parquet_rows(path: Path) -> Iterator[Any]:
    need("pyarrow")
    import pyarrow
    import pyarrow.parquet as pq

    from adaptvis_vllm.offline.tables import rows_of

    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches():
                for row in rows_of(batch):
                    yield row if isinstance(row, BadRow) else _without_inner_nulls(row)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error!s:.200}") from None


def _without_inner_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: without_nulls(value) for name, value in row.items()}


def parse(row: Any, folder: Path, name: str) -> Question:
    """One row. folder: what paths are relative to. name: the id if it has none."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"it must be an object, not {type(row).__name__}")
    media = {name: row[name] for name in ("image", "images") if name in row}
    row = {k: v for k, v in row.items() if not is_null(v) and k not in media}
    for field, value in row.items():
        check_unicode(value, field)
    question, prompt = row.get("question"), row.get("prompt")
    if question is None and prompt is None:
        raise ValueError("question (or prompt) is missing")
    for field, value in (("question", question), ("prompt", prompt)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise ValueError(f"{field} must be a text, not {value!r:.60}")
    answers = _texts("answer", row.get("answer"))
    if isinstance(row.get("choices"), str):
        raise ValueError(f"choices must be a list of texts, not {row['choices']!r:.60}")
    return Question(
        id=_id(row.get("id")) or name,
        images=_images(media, folder),
        question=str(prompt if question is None else question),
        answer=answers,
        choices=_texts("choices", row["choices"]) if "choices" in row else (),
        prompt=prompt,
        meta={"answer": answers[0].lower()} | {k: v for k, v in row.items() if k not in FIELDS},
    )


def _id(value: Any) -> str | None:
    """As text; what is none becomes JSON."""
    return value if isinstance(value, str | None) else dumps(value).decode()


def _images(media: Mapping[str, Any], folder: Path) -> tuple[Source, ...]:
    given = [field for field, value in media.items() if not is_null(value)]
    if media and not given:
        raise ValueError(f"{next(iter(media))} is null")
    if len(given) != 1:
        raise ValueError("exactly one of image and images is needed")
    field = given[0]
    sources = no_nulls(field, media[field])
    sources = sources if isinstance(sources, list) else [sources]
    if not sources:
        raise ValueError(f"{field} is empty")
    return tuple(_image(source, folder, field) for source in sources)


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
    """Fields that every question has and that have a few different values, not objects."""
    names = [n for n, v in questions[0].meta.items() if not isinstance(v, dict | list)]
    names = [n for n in names if all(n in q.meta for q in questions)]
    return tuple(n for n in names if 1 < len({str(q.meta[n]) for q in questions}) <= GROUPS_MAX)
