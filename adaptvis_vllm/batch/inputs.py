"""What a job reads: pieces of a JSONL or Parquet input, each readable on its own.

A row is known by its number in the input, from 0.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptvis_vllm.rows import FIELDS

PIECE_ROWS = 16  # at first; doubled whenever there are too many pieces
PIECE_BYTES = 16 * 2**20
PIECES = 4096
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Piece:
    """Rows first .. first+count-1. start: byte offset (JSONL) or (row group, row) (Parquet)."""

    path: str
    first: int
    count: int
    start: Any
    size: int = 0  # bytes; 0 if not known
    columns: tuple[tuple[str, str], ...] = ()  # Parquet: field, column

    def read(self) -> Iterator[tuple[int, Any]]:
        """(number, undecoded row) of each."""
        return self._read_parquet() if self.columns else self._read_lines()

    def _read_lines(self) -> Iterator[tuple[int, Any]]:
        with open(self.path, "rb") as lines:
            lines.seek(self.start)
            number = self.first
            for line in lines:
                if number == self.first + self.count:
                    return
                if line.strip():
                    yield number, line
                    number += 1
        if number != self.first + self.count:
            raise RuntimeError(f"{self.path} became shorter while it was read")

    def _read_parquet(self) -> Iterator[tuple[int, Any]]:
        import pyarrow.parquet as pq

        group, skip = self.start
        names = [column for _, column in self.columns]
        number = self.first
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(32, row_groups=[group], columns=names):
                if skip >= len(batch):
                    skip -= len(batch)
                    continue
                for row in batch.slice(skip).to_pylist():
                    if number == self.first + self.count:
                        return
                    yield number, {name: row[column] for name, column in self.columns}
                    number += 1
                skip = 0


@dataclass(frozen=True)
class Input:
    """A job's rows. kind: "rows" or "openai". folder: what image paths are relative to."""

    path: Path
    kind: str
    folder: Path
    total: int
    pieces: list[Piece] = field(repr=False)
    unused: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Changes when the input does: size, and digests of its ends."""
        digest = hashlib.sha256()
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
        return {"size": size, "rows": self.total, "sha256": digest.hexdigest()}


def decode(raw: Any) -> Any:
    """A row for the parser, or a ValueError in its place."""
    if not isinstance(raw, bytes):
        row = dict(raw)
        for name in ("adaptvis", "messages"):  # nested values may come as JSON
            if isinstance(row.get(name), str):
                try:
                    row[name] = json.loads(row[name])
                except ValueError as error:
                    return ValueError(f"{name} is not JSON: {error}")
        return without_nulls(row)
    try:
        return json.loads(raw)
    except ValueError as error:
        return ValueError(f"the line is not JSON: {error}")


def without_nulls(value: Any) -> Any:
    """Arrow gives every struct all fields; a null field is one that is not there."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def open_input(
    path: Path, listing: Path, columns: Mapping[str, str] | None = None, kind: str = "auto"
) -> Input:
    """The input at `path`: a file, or a folder of images. ValueError if it is none.

    listing: where a folder's images are listed, once. columns: field -> Parquet column.
    kind: "rows", "openai", or "auto" for a look at the first row.
    """
    if path.is_dir():
        if not listing.exists():
            _list_images(path, listing)
        return _lines(listing, "rows", path)
    if not path.is_file():
        raise ValueError(f"no such input: {path}")
    if path.suffix == ".parquet":
        return _parquet(path, dict(columns or {}))
    if columns:
        raise ValueError("columns are chosen in Parquet files only")
    return _lines(path, kind, path.parent)


def merged(pieces: list[Piece], rows: int) -> list[Piece]:
    """Neighbours joined up to so many rows, within `PIECE_BYTES`."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if (
            last is not None
            and (last.path, last.columns) == (piece.path, piece.columns)
            and last.first + last.count == piece.first
            and (not piece.columns or last.start[0] == piece.start[0])
            and last.count + piece.count <= rows
            and last.size + piece.size <= PIECE_BYTES
        ):
            count, size = last.count + piece.count, last.size + piece.size
            out[-1] = replace(last, count=count, size=size)
        else:
            out.append(piece)
    return out


def _list_images(folder: Path, listing: Path) -> None:
    partial = listing.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8") as out:
        for at, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                if name.lower().endswith(IMAGES):
                    relative = os.path.relpath(os.path.join(at, name), folder)
                    out.write(json.dumps({"id": relative, "image": relative}) + "\n")
        out.flush()
        os.fsync(out.fileno())
    if not partial.stat().st_size:
        raise ValueError(f"no images below {folder} ({', '.join(IMAGES)})")
    partial.replace(listing)


def _lines(path: Path, kind: str, folder: Path) -> Input:
    pieces: list[Piece] = []
    offset = start = number = first = 0
    rows = PIECE_ROWS
    name = str(path.resolve())
    head: Any = None
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                if head is None and isinstance(row := decode(line), dict):
                    head = row
                number += 1
            offset += len(line)
            if number - first >= rows or (number > first and offset - start >= PIECE_BYTES):
                pieces.append(Piece(name, first, number - first, start, offset - start))
                first, start = number, offset
                if len(pieces) >= PIECES:
                    rows *= 2
                    pieces = merged(pieces, rows)
    if number > first:
        pieces.append(Piece(name, first, number - first, start, offset - start))
    if kind == "auto":
        kind = "openai" if head is not None and "custom_id" in head and "body" in head else "rows"
    return Input(path, kind, folder.resolve(), number, pieces)


def _parquet(path: Path, columns: dict[str, str]) -> Input:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    for name, column in columns.items():
        if name not in FIELDS:
            raise ValueError(f"unknown field {name!r}; known are {', '.join(FIELDS)}")
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(names)}")
    renamed = set(columns.values())
    for name in names:
        if name in FIELDS and name not in columns and name not in renamed:
            columns[name] = name
        elif name.lower().startswith("adaptvis") and name not in renamed | set(FIELDS):
            raise ValueError(f"unknown column {name!r}: parameters are in the column 'adaptvis'")
    if not columns:
        raise ValueError(f"{path} has none of the columns {', '.join(FIELDS)}: {', '.join(names)}")
    chosen = tuple(sorted(columns.items()))
    pieces, first = [], 0
    for group, rows in enumerate(groups):
        # Reading from the middle of a group decodes what is before: few pieces a group.
        step = max(PIECE_ROWS, -(-rows // 16))
        for skip in range(0, rows, step):
            count = min(step, rows - skip)
            pieces.append(Piece(str(path.resolve()), first, count, (group, skip), columns=chosen))
            first += count
    unused = tuple(n for n in names if n not in columns.values())
    return Input(path, "rows", path.parent.resolve(), first, pieces, unused)
