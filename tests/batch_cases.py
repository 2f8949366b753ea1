"""Inputs of batch jobs, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from models.images import make_image

ENGINE = (
    *("--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", str(64 * 2**20)),
    *("--max-num-seqs", "16", "--block-size", "32", "--dtype", "float32"),
)
STEERING: tuple[dict[str, Any] | None, ...] = (
    None,
    {"alpha": 3.0},
    {"alpha_low": 0.5, "alpha_high": 1.5, "threshold": 0.4},
    {"alpha_low": 3.0, "alpha_high": 0.3, "threshold": 0.4},
)
IMAGES = 20
# ADAPTVIS_TEST_ROWS: 1000 and more is the full size of all tests that have one.
FULL = int(os.environ.get("ADAPTVIS_TEST_ROWS", "0")) >= 1000


def make_images(folder: Path) -> None:
    for number in range(IMAGES):
        make_image(number).save(folder / f"{number}.png")


def good_row(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "image": f"{number % IMAGES}.png",
        "question": f"Where is the red cat? {number // IMAGES}",
        "max_tokens": 3,
        "adaptvis": STEERING[number % 4],
    }


def write_questions(folder: Path, rows: int) -> Path:
    """A file of good rows in a folder that gets their pictures."""
    make_images(folder)
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(good_row(number)) + "\n" for number in range(rows)))
    return path


def bad_rows(folder: Path) -> list[tuple[str, str]]:
    """(line, what its reason must name), of every kind."""
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "short.png").write_bytes((folder / "0.png").read_bytes()[:60])
    rows: list[tuple[dict[str, Any], str]] = [
        ({"image": "absent.png", "question": "?"}, "no such file"),
        ({"image": "broken.png", "question": "?"}, "no readable image"),
        ({"image": "short.png", "question": "?"}, "no readable image"),
        ({"image": "http://127.0.0.1:9/x.png", "question": "?"}, "cannot be loaded"),
        ({"image": "data:image/png;base64,@@", "question": "?"}, "no readable image"),
        ({"image": "0.png", "question": "word " * 600}, "512"),
        ({"image": "0.png", "question": "?", "adaptvis": {"alpha": -1}}, "alpha"),
        ({"image": "0.png", "question": "?", "adaptvis": {"alfa": 1}}, "alpha"),
        ({"image": "0.png", "question": "?", "adaptvis": {"alpha": 2, "layers": "9"}}, "layers"),
        ({"image": "0.png", "question": "?", "max_tokens": 0}, "max_tokens"),
        ({"image": "0.png"}, "question"),
        ({"image": None, "question": "?"}, "image is null"),
        ({"image": "0.png", "question": "?", "colour": 1}, "colour"),
    ]
    lines = [(json.dumps({"id": f"bad {n}"} | row), reason) for n, (row, reason) in enumerate(rows)]
    lines += [("{not json", "not JSON"), ("[1, 2]", "object"), ("[" * 5000, "nested")]
    lines += [('{"id": "caf\udce9"}', "not UTF-8"), ('{"id": ' + "9" * 5000 + "}", "digits")]
    return [*lines, ('{"id": "\\ud83d", "question": "?"}', "id is no Unicode text")]


def mixed(folder: Path, rows: int, share: float) -> tuple[Path, dict[int, str]]:
    """A file of which `share` are bad rows; (path, row number -> what its reason names)."""
    bad = bad_rows(folder)
    chosen = random.Random(0).sample(range(rows), max(len(bad), int(rows * share)))
    reasons, lines = {}, []
    for number in range(rows):
        if number in chosen:
            line, reason = bad[chosen.index(number) % len(bad)]
            reasons[number] = reason
            lines.append(line)
        else:
            lines.append(json.dumps(good_row(number)))
    path = folder / "mixed.jsonl"
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    return path, reasons


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-P", "-m", "adaptvis_vllm.cli", *map(str, arguments)]


def run(*arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=env)
    assert done.returncode == code, done.stderr[-4000:]
    return done


def start(log: Path, *arguments: Any) -> psutil.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return psutil.Popen(command(*arguments), stdout=out, stderr=out, env=env)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def finished(output: Path, attempt: int | None = None) -> int:
    """Rows in a running job's part files, all of them or those of one attempt."""
    count = 0
    files = "*.part" if attempt is None else f"{attempt:06d}-*.part"
    for part in output.with_name(output.name + ".job").glob(files):
        with part.open("rb") as lines:
            count += sum(line.split(b" ", 3)[2] in (b"+", b"!") for line in lines)
    return count
