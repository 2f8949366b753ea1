"""The benchmarks from the Hugging Face hub, through the library `datasets`.

`ServiceNow/whatsup_all` has What'sUp's pictures and captions (columns `image_options`,
`caption_options`, the right caption first), `AdaptVis/all_datasets` its questions,
`cambridgeltl/vsr_zeroshot` VSR with links to its pictures. A folder in a hub repository's
layout does instead of its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptvis_vllm.evaluation.datasets import vsr, whatsup
from adaptvis_vllm.evaluation.datasets.needed import need
from adaptvis_vllm.evaluation.datasets.question import Benchmark
from adaptvis_vllm.evaluation.datasets.question_files import Asked, parse_question, read_questions

PREFIX = "hf:"
WHATSUP = "ServiceNow/whatsup_all"
QUESTIONS = "AdaptVis/all_datasets"
VSR = "cambridgeltl/vsr_zeroshot"


def whatsup_benchmark(name: str, repository: str, questions: str | None) -> Benchmark:
    """One of `whatsup.PARTS`. questions: a file or folder, "hf:REPOSITORY", None for QUESTIONS."""
    part = whatsup.PARTS[name]
    asked = _asked(part, questions)
    # Of this part alone: the repository's other pictures are 10 GB.
    files = {part.hub: f"data/{part.hub}-*"}
    columns = ("image_options", "caption_options")
    rows = _load(repository, part.hub, columns, files=files, image="image_options")
    annotations = []
    for number, row in enumerate(rows):
        image, captions = row["image_options"], row["caption_options"]
        if not captions:
            raise ValueError(f"{repository}, row {number}: caption_options is empty")
        annotations.append(whatsup.Annotation(image["bytes"] or Path(image["path"]), captions[0]))
    return whatsup.assemble(part, asked, annotations)


def vsr_benchmark(repository: str) -> Benchmark:
    columns = ("image_link", "caption", "label")
    rows = _load(repository, "test", columns, files={"test": "test.jsonl"})
    return vsr.assemble(rows, repository, lambda row: row["image_link"])


def _asked(part: whatsup.Part, questions: str | None) -> list[Asked]:
    if questions is not None and not questions.startswith(PREFIX):
        return read_questions(whatsup.question_file(part.questions, None, Path(questions)))
    repository = (questions or QUESTIONS).removeprefix(PREFIX)
    rows = _load(repository, "test", ("question", "answer"), config=part.asked)
    out = []
    for number, row in enumerate(rows):
        try:
            out.append(parse_question({"id": number, **row}))
        except ValueError as error:
            raise ValueError(f"{repository} {part.asked}, row {number}: {error}") from None
    return out


def _load(
    repository: str,
    split: str,
    columns: tuple[str, ...],
    *,
    config: str | None = None,
    files: dict[str, str] | None = None,
    image: str | None = None,
) -> Any:
    """A split with all of `columns`; files: its own only. Pictures in `image` stay encoded."""
    need("datasets")
    import datasets

    try:
        rows = datasets.load_dataset(repository, config, data_files=files, split=split)
    except Exception as error:  # the library raises many kinds: no network, no split, no access
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the data set {repository} cannot be loaded: {reason:.300}") from None
    absent = [name for name in columns if name not in rows.column_names]
    if absent:
        raise ValueError(
            f"{repository} has no column {absent[0]!r}; it has {', '.join(rows.column_names)}"
        )
    return rows if image is None else rows.cast_column(image, datasets.Image(decode=False))
