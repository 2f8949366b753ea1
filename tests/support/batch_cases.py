"""Inputs of batch jobs, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
from checkpoints.images import make_image

from support.commands import apart, words

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
PICTURE = "PICTURE"
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


def bad_rows(folder: Path) -> list[tuple[dict[str, Any] | str, str]]:
    """(row or line, what its reason must name), of every kind; `PICTURE` is a good picture."""
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "short.png").write_bytes((folder / "0.png").read_bytes()[:60])
    asked = {"image": PICTURE, "question": "?"}
    return [
        ({"image": "absent.png", "question": "?"}, "no such file"),
        ({"image": "broken.png", "question": "?"}, "no readable image"),
        ({"image": "short.png", "question": "?"}, "no readable image"),
        # Refused after the picture was rendered, one by the processor, one by its length.
        ({"image": PICTURE, "prompt": "USER: hi ASSISTANT:"}, "placeholder"),
        ({"images": [PICTURE, "18.png", "17.png"], "question": "word " * 118}, "512"),
        ({"images": [PICTURE] * 40, "question": "?"}, "image"),
        # More pictures than placeholders: of two pictures one is known already.
        ({"images": [PICTURE, "19.png"], "prompt": "USER: <image> ASSISTANT:"}, "placeholder"),
        ({"image": "http://127.0.0.1:9/x.png", "question": "?"}, "cannot be loaded"),
        ({"image": "data:image/png;base64,@@", "question": "?"}, "no readable image"),
        (asked | {"question": "word " * 600}, "512"),
        (asked | {"adaptvis": {"alpha": -1}}, "alpha"),
        (asked | {"adaptvis": {"alfa": 1}}, "alpha"),
        (asked | {"adaptvis": {"alpha": 2, "layers": "9"}}, "layers is '9', but the model has"),
        (asked | {"adaptvis": {"alpha_low": 0.5}}, "alpha_high is missing"),
        (
            asked | {"adaptvis": {"candidates": [1, 2, 3]}},
            "candidates must be 1 to 2 alphas",
        ),
        (asked | {"max_tokens": 0}, "max_tokens"),
        (asked | {"max_tokens": 2**40}, "max_tokens must be a whole number from 1 to 2147483135"),
        (asked | {"seed": 2**63}, "seed must be a whole number from -9223372036854775808 to"),
        (asked | {"temperature": 1, "seed": 2**64}, "to 9223372036854775807, not 184467"),
        (asked | {"temperature": 3}, "temperature"),
        ({"image": PICTURE}, "question"),
        ({"image": None, "question": "?"}, "image is null"),
        (asked | {"colour": 1}, "colour"),
        ("{not json", "not JSON"),
        ("[1, 2]", "object"),
        ("[" * 5000, "nested"),
        ('{"id": "caf\udce9"}', "not UTF-8"),
        ('{"id": ' + "9" * 5000 + "}", "digits"),
        ('{"id": "\\ud83d", "question": "?"}', "id is no Unicode text"),
    ]


def mixed(folder: Path, rows: int, share: float) -> tuple[Path, dict[int, str]]:
    """A file of which `share` are bad rows; (path, row number -> what its reason names).

    Every kind is there: the pictures of the first bad rows are those of good ones that follow.
    """
    bad = bad_rows(folder)
    chosen = list(range(0, 3 * len(bad), 3))
    chosen += random.Random(0).sample(
        range(chosen[-1] + 1, rows), max(0, int(rows * share) - len(bad))
    )
    reasons, lines = {}, []
    for number in range(rows):
        if number in chosen:
            kind = chosen.index(number) % len(bad)
            row, reasons[number] = bad[kind]
            if isinstance(row, dict):
                row = json.dumps({"id": f"bad {kind}"} | row)
            lines.append(row.replace(PICTURE, f"{number % IMAGES}.png"))
        else:
            lines.append(json.dumps(good_row(number)))
    path = folder / "mixed.jsonl"
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    return path, reasons


def run(*arguments: Any, code: int = 0, by: Any = apart) -> CompletedProcess[str]:
    """`adaptvis ARGUMENTS`, which must end with this status. by: of `support.commands`."""
    done = by(*arguments)
    assert done.returncode == code, done.stderr[-4000:]
    return done


def start(log: Path, *arguments: Any) -> psutil.Popen:
    with log.open("ab") as out:
        return psutil.Popen(words(*arguments), stdout=out, stderr=out)


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
