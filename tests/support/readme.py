"""The commands and programs of the README and of docs/, as they stand there, and a user's shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.waiting import HANG_S

ROOT = Path(__file__).parents[2]
MODEL = "llava-hf/llava-1.5-7b-hf"
URL = "http://localhost:8000"
TEXT = "\n".join(
    page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. language: as written behind the fence, or nothing."""

    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    found = [Block(*parts) for parts in _FENCE.findall(TEXT)]
    return [block for block in found if block.language in languages] if languages else found


def snippet(language: str, begins: str) -> str:
    """The one fenced block of that language that begins so."""
    (found,) = [block.text for block in blocks(language) if block.text.startswith(begins)]
    return found


def commands() -> list[str]:
    """Every command of the blocks for a shell, and of indented lines; one that takes several
    lines is whole."""
    found: list[str] = []
    for block in blocks("sh"):
        whole, end = "", None
        for line in block.text.splitlines():
            whole += line + "\n"
            if end is None and "<<" in line:
                end = line.rpartition("<<")[2].strip()
            elif end is None or line == end:
                end = None
            if end is None and not line.endswith("\\"):
                found.append(whole)
                whole = ""
    lines = re.findall(r"^    (make \w+)(?:  .*)?$", _FENCE.sub("", TEXT), re.MULTILINE)
    return [command for command in found if command.strip()] + lines


def command(pattern: str) -> str:
    """The one command that begins like this regular expression."""
    (found,) = {text for text in commands() if re.match(pattern, text)}
    return found


def mentioned() -> list[str]:
    """Commands with arguments inside sentences."""
    spans = re.findall(r"`([^`]+)`", _FENCE.sub("", TEXT))
    words = (" ".join(span.split()) for span in spans)
    first = r"([A-Z_]+=\S+ )*(adaptvis|docker|kubectl|make|pip|pytest|python|ray|vllm) \S"
    return [text for text in words if re.match(first, text)]


def shell() -> dict[str, str]:
    """The environment of a user's shell in which .venv is active: nothing that tests set."""
    kept = ("HOME", "LANG", "LC_ALL", "LOGNAME", "TMPDIR", "USER", "XDG_CACHE_HOME")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # There is no hub here, and nothing is to be told to anybody.
    here = {"PATH": path, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return {name: os.environ[name] for name in kept if name in os.environ} | here


def run(text: str, folder: Path, language: str = "sh") -> subprocess.CompletedProcess[str]:
    """A command or a program, run in a folder by a user."""
    words = ["bash", "-euo", "pipefail", "-c", text]
    if language == "python":
        (folder / "program.py").write_text(text, encoding="utf-8")
        words = ["python", "program.py"]
    return subprocess.run(
        words, cwd=folder, env=shell(), capture_output=True, text=True, timeout=HANG_S
    )
