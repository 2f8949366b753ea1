"""Answer the rows of a `ray.data.Dataset`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from adaptvis_vllm.batch.formats import make_engine
from adaptvis_vllm.batch.job import Settings


def answer(
    dataset: Any,
    engine: dict[str, Any],
    *,
    workers: int = 1,
    folder: str | Path = ".",
    kind: str = "rows",
    defaults: dict[str, Any] | None = None,
    logprobs: int | None = None,
    keep: tuple[str, ...] = (),
    cpus: float | None = None,
    gpus: float | None = None,
    batch_size: int = 256,
) -> Any:
    """A dataset of output rows: columns `id`, `text`, `token_ids`, `finish_reason`,
    `adaptvis`, `error` of every row of `dataset`, whose columns are the input fields.

    engine: arguments of vLLM's `LLM`; steering for all rows is
    additional_config={"adaptvis": {...}}. kind: "rows" or "openai". defaults: fields for
    rows that lack them. keep: input columns to copy. folder: what image paths are relative
    to. A bad row becomes an error row. Lazy, like all of Ray Data; the cluster needs two
    CPUs more than the workers. Retries, checkpoints and writing are Ray Data's here: the
    command `adaptvis batch` has its own.
    """
    from adaptvis_vllm.batch.actor import DatasetActor
    from adaptvis_vllm.batch.pool import pool

    folder = str(Path(folder).resolve())
    make = partial(make_engine, engine, kind, folder, logprobs, defaults, 0.25 / workers)
    settings = Settings(engine, workers=workers, cpus=cpus, gpus=gpus)
    return dataset.map_batches(
        DatasetActor,
        fn_constructor_args=(make, kind, logprobs is not None, tuple(keep)),
        batch_size=batch_size,
        **pool(settings),
    )
