"""What a job reads: pieces of a JSONL or Parquet input, each readable on its own.

A row is known by its number in the input, from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptvis_vllm.batch.folder import Skipped, list_pictures
from adaptvis_vllm.files import lines
from adaptvis_vllm.files.lines import BadRow, Line
from adaptvis_vllm.offline.schema import FIELDS, without_nulls

PIECE_ROWS = 16  # at first; doubled whenever there are too many pieces
PIECE_BYTES = 16 * 2**20
PIECES = 4096


@dataclass(frozen=True)
class Piece:
    """Rows first .. first+count-1.

    start: byte offset (JSONL) or (row group, row) (Parquet). line: before the first one (JSONL).
    """

    path: str
    first: int
    count: int
    start: Any
    size: int = 0  # bytes; 0 if not known
    columns: tuple[tuple[str, str], ...] = ()  # Parquet: field, column
    line: int = 0

    def read(self) -> Iterator[tuple[int, Any]]:
        """(number, undecoded row) of each."""
        return self._read_parquet() if self.columns else self._read_lines()

    def _read_lines(self) -> Iterator[tuple[int, Any]]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            number = self.first
            for at, line in enumerate(file, self.line + 1):
                if number == self.first + self.count:
                    return
                if not lines.is_empty(line):
                    yield number, Line(at, line)
                    number += 1
        if number != self.first + self.count:
            raise RuntimeError(f"{self.path} became shorter while it was read")

    def _read_parquet(self) -> Iterator[tuple[int, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from adaptvis_vllm.offline.tables import rows_of

        group, skip = self.start
        fields, names = zip(*self.columns, strict=True)
        number = self.first
        wanted = list(dict.fromkeys(names))
        # Arrow takes no names that are not UTF-8, and some names for addresses.
        with open(self.path, "rb") as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(32, row_groups=[group], columns=wanted):
                if skip >= len(batch):
                    skip -= len(batch)
                    continue
                batch = pa.record_batch([batch.column(n) for n in names], names=list(fields))
                for row in rows_of(batch.slice(skip)):
                    if number == self.first + self.count:
                        return
                    yield number, row
                    number += 1
                skip = 0


@dataclass(frozen=True)
class Input:
    """A job's rows. kind: "rows" or "openai". folder: what image paths are relative to.

    unused: columns of Parquet. skipped: what a folder holds beside its pictures.
    """

    path: Path
    kind: str
    folder: Path
    total: int
    pieces: list[Piece] = field(repr=False)
    unused: tuple[str, ...] = ()
    skipped: Skipped = field(default_factory=dict)

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
    """A row for the parser, or a `BadRow` in its place. raw: what pieces yield."""
    if isinstance(raw, BadRow):
        return raw
    if isinstance(raw, Line):
        return lines.decode_line(raw)
    row = dict(raw)
    for name in ("adaptvis", "messages"):  # nested values may come as JSON
        if isinstance(row.get(name), str):
            try:
                row[name] = lines.loads(row[name])
            except ValueError as error:
                return BadRow(f"{name} {error}", row.get("id"))
        row |= {name: without_nulls(row[name])} if name in row else {}
    return row


def open_input(
    path: Path, listing: Path, columns: Mapping[str, str] | None = None, kind: str = "auto"
) -> Input:
    """The input at `path`: a file, or a folder of images. ValueError if it is none.

    listing: where a folder's images are listed, once, or lines of another encoding put. columns:
    field -> Parquet column. kind: "rows", "openai", or "auto" for a look at the first row.
    """
    if path.is_dir():
        skipped = list_pictures(path, listing)
        return replace(_lines(listing, "rows", path), skipped=skipped)
    if not path.is_file():
        raise ValueError(f"no such input: {path}")
    if path.suffix.lower() == ".parquet":
        return _parquet(path, dict(columns or {}))
    if columns:
        raise ValueError("columns are chosen in Parquet files only")
    return replace(_lines(_as_utf8(path, listing), kind, path.parent), path=path)


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


def _as_utf8(path: Path, listing: Path) -> Path:
    """The file, or a copy of it at `listing`: pieces are found by their bytes."""
    with path.open("rb") as file:
        if lines.is_utf8(file):
            return path
        partial = listing.with_suffix(".tmp")
        with partial.open("wb") as out:
            out.writelines(lines.utf8_lines(file))
    partial.replace(listing)
    return listing


def _lines(path: Path, kind: str, folder: Path) -> Input:
    pieces: list[Piece] = []
    offset = start = number = first = at = line = 0
    rows = PIECE_ROWS
    name = str(path.resolve())
    head: Any = None
    with path.open("rb") as file:
        for at, text in enumerate(file, 1):
            if not lines.is_empty(text):
                if head is None and isinstance(row := decode(Line(at, text)), dict):
                    head = row
                number += 1
            offset += len(text)
            if number - first >= rows or (number > first and offset - start >= PIECE_BYTES):
                pieces.append(Piece(name, first, number - first, start, offset - start, line=line))
                first, start, line = number, offset, at
                if len(pieces) >= PIECES:
                    rows *= 2
                    pieces = merged(pieces, rows)
    if number > first:
        pieces.append(Piece(name, first, number - first, start, offset - start, line=line))
    if kind == "auto":
        kind = "openai" if head is not None and "custom_id" in head and "body" in head else "rows"
    return Input(path, kind, folder.resolve(), number, pieces)


def _parquet(path: Path, columns: dict[str, str]) -> Input:
    import pyarrow.parquet as pq

    with path.open("rb") as source, pq.ParquetFile(source) as file:
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
