"""The site of docs/: it builds, whole and by itself, and a dead link ends it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import HANG_S

from adaptvis_vllm import cli
from adaptvis_vllm.plugin import HOOKS

ROOT = Path(__file__).parents[2]


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, of the checkout in root."""
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    return subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def test_the_site_is_built(tmp_path: Path) -> None:
    """A page for each file; a reader's browser fetches nothing from elsewhere."""
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert len(pages) > 10
    for page in pages:
        text = (tmp_path / f"{page.stem}.html").read_text(encoding="utf-8")
        assert "<h1 " in text, page
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"?([^\s\">]+)", text)
        assert loaded
        assert not [url for url in loaded if "//" in url], page
    for sheet in tmp_path.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8"), sheet
    assert "Which alpha" in (tmp_path / "index.html").read_text(encoding="utf-8")  # the README


@pytest.mark.parametrize(
    ("page", "link"),
    [
        ("docs/serving.md", "nowhere.md"),
        ("docs/serving.md", "parameters.md#nowhere"),
        ("docs/serving.md", "#nowhere"),
        ("docs/serving.md", "../kernels/nowhere.py"),
        ("README.md", "docs/nowhere.md"),
        ("README.md", "docs/serving.md#nowhere"),
        ("CHANGELOG.md", "nowhere.md"),
    ],
)
def test_a_dead_link_ends_it(page: str, link: str, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("docs", "README.md", "CHANGELOG.md", "site"):
            (root / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", root / "docs")
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, root)
    with (root / page).open("a", encoding="utf-8") as file:
        file.write(f"\nSee [there]({link}).\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere" in done.stderr


def test_every_hook_is_told() -> None:
    """docs/hooks.md names those of the code and no other."""
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w.]+)`<br>`([\w.]+)` \|", text, re.MULTILINE)
    assert sorted(f"{module}:{name}" for name, module in told) == sorted(h.target for h in HOOKS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"adaptvis-vllm \d\S*, vllm(-cpu)? \d\S*\n", capsys.readouterr().out)


def test_version_is_light() -> None:
    """It is known without vLLM, torch or numpy."""
    program = (
        "import sys; from adaptvis_vllm import cli; cli.main(['--version']); "
        "print([name for name in ('numpy', 'torch', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.stdout.endswith("\n[]\n"), done.stdout + done.stderr
