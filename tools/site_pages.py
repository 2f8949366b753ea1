"""Hooks of MkDocs: pages of the site that are files of the checkout, and links to such files.

A link to a file that is no page becomes its path; a file that does not exist ends the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Page -> the file of the checkout that it is.
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
# GitHub wants it in code in a table; Python-Markdown shows the backslash.
_ESCAPED = re.compile(r"\\\|")
_LINK = re.compile(r"\[([^]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text; FileNotFoundError for a link to nothing."""
    name = page.file.src_uri
    file = ROOT / PAGES[name] if name in PAGES else ROOT / "docs" / name
    return rewritten(markdown if name not in PAGES else file.read_text(encoding="utf-8"), file)


def rewritten(text: str, file: Path) -> str:
    """Text of a file of the checkout, its links being those of a page in docs/."""
    pages = {ROOT / source: page for page, source in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        label, to, anchor = match[1], match[2], match[3] or ""
        target = Path(os.path.normpath(file.parent / to))
        if not target.exists():
            raise FileNotFoundError(f"{file.relative_to(ROOT)} links to {to}, which does not exist")
        if target in pages:
            return f"[{label}]({pages[target]}{anchor})"
        if target.is_relative_to(ROOT / "docs"):
            return f"[{label}]({target.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        path, said = target.relative_to(ROOT).as_posix(), label.strip("`/")
        if said in path or path in said:
            return f"`{max(said, path, key=len)}`"
        return f"{label}, `{path}`"

    return _ESCAPED.sub("|", _LINK.sub(link, text))
