"""The README's commands and programs for a server, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adaptvis_vllm.serving import command

ROOT = Path(__file__).parents[1]
MODEL = "llava-hf/llava-1.5-7b-hf"
README = (ROOT / "README.md").read_text()


def snippet(language: str, begins: str, text: str = README) -> str:
    """The one fenced block of that language that begins so."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if block.startswith(begins)]
    return found


def run(language: str, program: str, url: str) -> str:
    """What the snippet prints when the test's server stands for the README's."""
    program = program.replace(MODEL, "tiny").replace("http://localhost:8000", url)
    shell = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-P", "-c"]}
    done = subprocess.run(
        [*shell[language], program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("language", "begins"),
    [("sh", "curl -s http://localhost:8000/v1/chat"), ("python", "import base64")],
)
def test_a_request(url: str, language: str, begins: str) -> None:
    printed = run(language, snippet(language, begins), url)
    assert "adaptive" in printed
    assert "confidence" in printed


def test_the_sweep(url: str) -> None:
    printed = run("sh", snippet("sh", "curl -s http://localhost:8000/adaptvis/sweep"), url)
    assert [row["alpha"] for row in json.loads(printed)["rows"]] == [None, 0.5, 0.8, 1.2, 1.5, 2.0]


def test_the_metrics(url: str) -> None:
    printed = run("sh", snippet("sh", "curl -s http://localhost:8000/metrics"), url)
    table = re.findall(r"^\| `(adaptvis_\w+)` \|", README, re.MULTILINE)
    assert len(table) == 4
    for name in table:
        assert re.search(rf"^{name}", printed, re.MULTILINE), name


def test_the_serve_command() -> None:
    """Its options; the server that the other tests ask was started by the same command."""
    words = shlex.split(snippet("sh", "adaptvis serve"))
    args, replicas, _ = command.parse(words[2:])
    assert (args.model, replicas) == (MODEL, None)
    assert args.additional_config == {"adaptvis": {"preset": "controlled_a"}}
