"""JSON lines: the one decoder and the one encoder of all commands.

A file is read as UTF-8, or as UTF-16 or UTF-32 if its first row is; byte order marks are dropped.
A line that is no row becomes a `BadRow` in its place, which names the line. What is written is
strict JSON in UTF-8.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DEPTH = 100  # levels of nesting in a row
IDS = ("id", "custom_id")


class Line(NamedTuple):
    """A line of a file, not empty. number: from 1, empty lines counted."""

    number: int
    text: bytes


class BadRow(ValueError):
    """Stands for a row that cannot be read. row_id: its id as far as JSON can show it."""

    def __init__(self, reason: str, row_id: Any = None) -> None:
        super().__init__(reason)
        self.row_id = row_id


def read_lines(path: Path) -> Iterator[dict[str, Any] | BadRow]:
    """Each line's row as `decode_line` gives it; empty lines are skipped."""
    return map(decode_line, lines_of(path))


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a file that are not empty, in UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(utf8_lines(file), 1):
            if not is_empty(line):
                yield Line(number, line)


def is_utf8(file: io.BufferedReader) -> bool:
    """Whether `utf8_lines` yields the file's own bytes. The file is at its beginning, and stays."""
    return _encoding(file.peek(16)) == "utf-8"


def utf8_lines(file: io.BufferedReader) -> Iterable[bytes]:
    """All lines, in UTF-8. What cannot be decoded makes its line a bad row."""
    if is_utf8(file):
        return file
    # backslashreplace: \x.. is in no JSON.
    encoding = _encoding(file.peek(16))
    text = io.TextIOWrapper(file, encoding, errors="backslashreplace", newline="\n")
    return (line.removeprefix("\ufeff").encode() for line in text)


def is_empty(line: bytes) -> bool:
    """A line that is no row; a lone byte order mark is none either."""
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def decode_line(line: Line) -> dict[str, Any] | BadRow:
    """The row in a line."""
    try:
        row = loads(line.text)
    except ValueError as error:
        return BadRow(f"line {line.number} {error}")
    if not isinstance(row, dict):
        return BadRow(f"line {line.number} must hold an object, not {type(row).__name__}")
    return checked_row(row, f"line {line.number}: ")


def checked_row(row: dict[str, Any], where: str = "") -> dict[str, Any] | BadRow:
    """The row with its ids as `json_value` has them, NaN in a field's place being null.

    where: begins the reason of a bad one.
    """
    for name, value in row.items():
        if isinstance(value, float) and math.isnan(value):  # as pandas writes what is missing
            row[name] = None
    for name in IDS:
        if name in row:
            try:
                row[name] = json_value(row[name], name)
            except ValueError as error:
                return BadRow(f"{where}{error}", _strict(row[name]))
    return row


def loads(text: str | bytes) -> Any:
    """A JSON value. ValueError completes the sentence that begins with what `text` is."""
    try:
        if isinstance(text, bytes):
            text = text.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n").decode()
        value = json.loads(text)
        _check_depth(value)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"is not UTF-8: byte {error.start + 1} is 0x{byte:02x}") from None
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise ValueError(f"is not JSON: {reason} at column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"is nested more than {DEPTH} levels deep") from None
    except ValueError:  # int()'s
        digits = sys.get_int_max_str_digits()
        raise ValueError(f"holds a number of more than {digits} digits") from None
    return value


def dumps(value: Any, indent: int | None = None) -> bytes:
    """Strict JSON in UTF-8: NaN and infinities become null, lone surrogates are written out."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode()
    except ValueError:  # UnicodeEncodeError is one
        return json.dumps(_strict(value), ensure_ascii=False, indent=indent).encode()


def json_value(value: Any, name: str) -> Any:
    """A value of Arrow or Python in JSON. ValueError for what has no place there.

    Dates, times and durations: ISO 8601. Decimals, UUIDs: text. Bytes: hexadecimal.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{name} must be finite, not {value}")
        return None if math.isnan(value) else value
    if isinstance(value, str):
        return unicode_text(value, name)
    if isinstance(value, Mapping):
        items = value.items()
        return {unicode_text(str(k), name): json_value(v, name) for k, v in items}
    if isinstance(value, list | tuple):
        return [json_value(v, name) for v in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value, bytes_mode="hex")
    except PydanticSerializationError:
        raise ValueError(f"{name} has no form in JSON: {value!r:.60}") from None


def unicode_text(value: str, name: str) -> str:
    """The text; ValueError for one with lone surrogates, which neither UTF-8 nor models have."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} is no Unicode text: character {error.start + 1} of "
                f"{value[max(0, error.start - 20) : error.start + 20]!r} is half a pair"
            ) from None
    return value


def check_unicode(value: Any, name: str) -> None:
    """`unicode_text` for all texts inside lists and objects."""
    if isinstance(value, str):
        unicode_text(value, name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            unicode_text(str(key), name)
            check_unicode(inner, name)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_unicode(inner, name)


def _encoding(head: bytes) -> str:
    """Of a file by its beginning; UTF-8 unless an object in another encoding is there."""
    found = json.detect_encoding(head)
    first = head.decode(found, "ignore").lstrip("\ufeff \t\r\n")[:1]
    return found if first == "{" and not found.startswith("utf-8") else "utf-8"


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise RecursionError


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_strict(str(k)): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return value if value is None or isinstance(value, bool | int) else str(value)
