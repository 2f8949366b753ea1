"""Errors of parameters, and numbers in their texts. Import-light: no torch, no vLLM."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeGuard

NUMBER_MAX = 9999  # of a layer, a head, a picture


class BadParameter(ValueError):
    """A wrong steering parameter. field: its name without prefix, "" if there is no such field."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def show(value: Any) -> str:
    """repr, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def word(name: str) -> str:
    """A parameter's name, for an error message: what is not printable or long is shown."""
    return name if name.isprintable() and len(name) <= 60 else show(name)


def nearest(word: str, names: Iterable[str], prefix: str) -> str:
    """ "; did you mean ...?", or nothing."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """A finite number; bool is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def number(text: str) -> float | None:
    """Of plain decimal text."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def number_range(text: str) -> range:
    """The numbers in "3" or "5-7"; ValueError for anything else."""
    first, dash, last = (p.strip() for p in text.partition("-"))
    last = last if dash else first
    if not all(p.isascii() and p.isdigit() and len(p) <= 4 for p in (first, last)):
        raise ValueError(text)
    if int(first) > int(last):
        raise ValueError(text)
    return range(int(first), int(last) + 1)


def numbers_in(text: str) -> set[int]:
    """The numbers in "0,2,5-7"; ValueError for anything else."""
    return {i for part in text.split(",") for i in number_range(part)}


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as "0,2,5-7"."""
    found: list[list[int]] = []
    for i in numbers:
        if found and i == found[-1][1] + 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def canonical_numbers(
    value: Any, full: str, field: str, examples: str, words: str = "'all'"
) -> str | None:
    """Sorted, merged ranges: "2,0-1" and [0, 1, 2] both become "0-2"; "all" becomes None.

    examples, words: for the error, what numbers may be, and the words taken beside them.
    """
    if isinstance(value, str) and value == "all":
        return None
    items = value if isinstance(value, list | tuple) else [value]
    try:
        if not all(isinstance(i, str) or is_int(i) for i in items):
            raise ValueError
        return ranges(sorted(numbers_in(",".join(str(i) for i in items))))
    except ValueError:
        raise BadParameter(
            f"{full} must be {examples} (at most {NUMBER_MAX}), or {words}, not {show(value)}",
            field,
        ) from None
