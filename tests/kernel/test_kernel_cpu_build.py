"""Compiling the CPU rows: once for a source, a compiler and a processor; and where it fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adaptvis_vllm.kernels.cpu import build as cpu

from adaptvis_vllm.doctor.environment import _device

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "adaptvis_vllm"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is compiled in no time, in the kernel's place."""
    file = tmp_path / "small.cpp"
    file.write_text('extern "C" void adaptvis_steer_rows(void*) {}')
    monkeypatch.setattr(cpu, "SOURCES", (file,))
    return file


def test_compiled_once(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = cpu._compiled()
    assert list(cache.iterdir()) == [library]
    made = library.stat().st_mtime_ns
    assert cpu._compiled() == library
    assert library.stat().st_mtime_ns == made
    monkeypatch.setenv("CXX", "g++ -DOTHER")
    assert cpu._compiled() != library
    assert len(list(cache.iterdir())) == 2


def test_processes_that_compile_at_the_same_time(cache: Path, source: Path) -> None:
    code = f"""
from pathlib import Path
from adaptvis_vllm.kernels.cpu import build

build.SOURCES = (Path({str(source)!r}),)
assert build.problem() is None
"""
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no C++ compiler (no-such-compiler) is in PATH"),
        ("g++ --no-such-option", "no-such-option"),
    ],
)
def test_where_it_cannot_be_compiled(
    cache: Path, compiler: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`adaptvis doctor` says why; nothing half done is left. What rows do then: test_engine.py."""
    monkeypatch.setenv("CXX", compiler)
    cpu._library.cache_clear()
    try:
        line = next(line for line in _device(torch) if line.startswith("steered rows"))
    finally:
        cpu._library.cache_clear()
    assert line.startswith("steered rows in torch, slowly: ")
    assert reason in line
    assert not list(cache.glob("*"))
