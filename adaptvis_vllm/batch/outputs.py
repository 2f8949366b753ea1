"""The final file, JSONL or Parquet by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".parquet")
TABLE_ROWS = 1000


def write(path: Path, kind: str, logprobs: bool, rows: Any) -> None:
    """Replace `path`, at once. rows(): an iterator over the rows' JSON, in order."""
    partial = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".jsonl":
        with partial.open("wb") as out:
            for row in rows():
                out.write(row + b"\n")
            out.flush()
            os.fsync(out.fileno())
    else:
        import pyarrow.parquet as pq

        from adaptvis_vllm.offline.tables import id_type, schema, table

        ids = id_type(json.loads(row)["id"] for row in rows())
        columns = schema(kind, ids, logprobs)
        with partial.open("wb") as out:
            with pq.ParquetWriter(out, columns) as writer:
                for block in _blocks(rows()):
                    writer.write_table(table([json.loads(row) for row in block], columns))
            out.flush()
            os.fsync(out.fileno())
    partial.replace(path)


def _blocks(rows: Iterator[bytes]) -> Iterator[list[bytes]]:
    while block := list(islice(rows, TABLE_ROWS)):
        yield block
