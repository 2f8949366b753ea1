"""A report as one self-contained HTML page, for light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Table:
    """columns: headings; the first column holds names, the others are aligned right.

    strong: numbers of rows to stress. note: a line below.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    strong: Sequence[int] = ()

    def text(self) -> str:
        """For a terminal: columns in line, the first to the left."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        out = []
        for line in lines:
            first, *others = (
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            out.append("  ".join([first, *others]).rstrip())
        return "\n".join(
            ([self.title] if self.title else []) + out + ([self.note] if self.note else [])
        )


@dataclass(frozen=True)
class Figure:
    """content: SVG markup (trusted: made by `svg.figure`), or a PNG file's bytes.

    title says what is seen; caption, below, how to read it.
    """

    content: str | bytes
    title: str
    caption: str = ""

    @property
    def svg(self) -> str | None:
        return self.content if isinstance(self.content, str) else None

    @property
    def uri(self) -> str | None:
        """The PNG as a data URI."""
        if isinstance(self.content, str):
            return None
        return "data:image/png;base64," + base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs of plain text, then tables, then figures (two a row where wide).

    small: many small figures a row.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    small: bool = False


def render(
    title: str,
    sections: Sequence[Section],
    *,
    facts: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The page. facts: model, data set, versions and the like, below the title.

    warnings: what a reader must know before the figures. All text is escaped.
    """
    return _template().render(title=title, sections=sections, facts=facts or {}, warnings=warnings)


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
