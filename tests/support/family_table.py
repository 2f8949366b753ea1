"""The table of families in docs/models.md: made from what the tests found, checked by them.

`ADAPTVIS_WRITE_TABLE=1 pytest tests/families/test_families.py` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from checkpoints.families import Family

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN = (
    "<!-- families: written by ADAPTVIS_WRITE_TABLE=1 pytest tests/families/test_families.py -->"
)
END = "<!-- end of families -->"
HEAD = ("| family | image positions | layers | status |", "| --- | --- | --- | --- |")


@dataclass
class Found:
    """What the run found about one family.

    inside: tokens at image positions. between: other tokens from an image's first position to its
    last. layers: kind of attention -> how many. v1, v2: how many cases agreed.
    """

    inside: list[str] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)
    v1: int = 0
    v2: int = 0
    video: bool = False
    refused: str = ""


def row(family: Family, found: Found) -> str:
    """The family's line of the table."""
    if found.refused:
        return f"| {family.name} | | | refused: {found.refused} |"
    positions = _code(found.inside)
    positions += f" ({family.note})" if family.note else ""
    positions += f"; not {_code(found.between)}" if found.between else ""
    status = f"{found.v1} cases on V1, {found.v2} on V2: same tokens"
    status += "; images and video" if found.video else ""
    return f"| {family.name} | {positions} | all: {' and '.join(sorted(found.layers))} | {status} |"


def write(rows: list[str]) -> None:
    """Put the rows between the page's markers."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join([BEGIN, *HEAD, *rows, END])
    PAGE.write_text(before + table + after, encoding="utf-8")


def read() -> list[str]:
    """The page's rows."""
    _, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the lines {BEGIN} and {END}")
    return table.strip().splitlines()[len(HEAD) :]


def _code(tokens: list[str]) -> str:
    """A bar ends a cell, in code too, unless it is escaped."""
    return ", ".join(f"`{token}`" for token in tokens).replace("|", r"\|")
