"""The rule of `skips`, on a few tests of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.skips import NOT_LISTED

TESTS = """
import pytest

def test_passes(): ...

@pytest.mark.skipif(True, reason="needs a GPU")
def test_allowed(): ...

@pytest.mark.skipif(True, reason="none of chromium is here")
def test_marked(): ...

@pytest.fixture
def absent():
    pytest.skip("no g++ here")

def test_fixture(absent): ...

def test_inside():
    pytest.skip("this processor has no AMX")

@pytest.mark.parametrize("value", [])
def test_empty(value): ...

@pytest.mark.xfail(strict=True)
def test_fails(): assert False
"""


@pytest.mark.parametrize("whole", ["", "pytest.importorskip('no_such_module')"])
def test_only_listed_reasons_skip(tmp_path: Path, whole: str) -> None:
    (tmp_path / "test_some.py").write_text(TESTS + whole)
    plugins = ("-p", "support.skips", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", *plugins]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    if whole:
        assert f"{NOT_LISTED}could not import 'no_such_module'" in done.stdout
        return
    for reason in ("none of chromium is here", "no g++ here", "got empty parameter set"):
        assert NOT_LISTED + reason in done.stdout, done.stdout
    assert "1 passed, 2 skipped, 1 xfailed, 3 errors" in done.stdout, done.stdout


@pytest.mark.parametrize("root", [True, False])
def test_ci_installs_what_is_missing(tmp_path: Path, root: bool) -> None:
    """Where it may; elsewhere it says so and runs nothing. Commands that only say their names."""
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    scripts = {"id": f"echo {0 if root else 1000}", "curl": "", "make": "echo make $*"}
    for name, line in (scripts | {"apt-get": "echo apt-get $* >&2"}).items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{line}\n")
        (tmp_path / name).chmod(0o755)
    run = Path(__file__).parents[2] / ".ci" / "run"
    done = subprocess.run([run], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    if root:
        assert done.returncode == 0
        assert done.stdout == "installing g++ chromium\nmake test\n"
        assert "apt-get install -y --no-install-recommends g++ chromium" in done.stderr
    else:
        assert done.returncode == 1
        assert done.stdout == ""
        assert "apt install g++ chromium" in done.stderr
