"""Every engine answers the cases as the transformers reference does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from checkpoints.llava import make_llava
from support.cases import make_rows, read_rows, write_rows
from support.commands import apart, here
from support.maps_parity import moved
from support.parity import (
    OPTIONS,
    answer,
    assert_parity,
    difference,
)


@pytest.fixture(scope="module")
def expected(model: Path, rows: Path) -> list[dict[str, Any]]:
    return answer("reference", model, rows, "reference", "--logprobs", "20")


def test_cases_are_worth_it(expected: list[dict[str, Any]], rows: Path) -> None:
    """Enough of them, both branches taken, and steering changes answers and maps."""
    assert len(expected) >= 60
    maps = [row["maps"] for row in expected if row["maps"]]
    assert len(maps) >= 20
    assert sum(moved(one) > 0.03 for one in maps) >= 10
    assert sum(one.tokens is not None for one in maps) >= 4
    inputs = read_rows(rows)
    branches = Counter()
    for given, row in zip(inputs, expected, strict=True):
        steer = given.get("adaptvis") or {}
        if "threshold" in steer and row["adaptvis"]["steered"]:
            branches[row["adaptvis"]["alpha"] == steer["alpha_low"]] += 1
    assert min(branches[True], branches[False]) >= 5
    plain = {
        r["image"]: e["token_ids"]
        for r, e in zip(inputs, expected, strict=True)
        if "image" in r and "adaptvis" not in r
    }
    changed = [
        e["token_ids"] != plain[r["image"]]
        for r, e in zip(inputs, expected, strict=True)
        if r.get("image") in plain and (r.get("adaptvis") or {}).get("alpha") in (0.3, 3.0)
    ]
    assert sum(changed) >= len(changed) / 2 > 0


def test_v1_float32(model: Path, rows: Path, expected: list[dict[str, Any]]) -> None:
    assert_parity(answer("generate", model, rows, "v1", *OPTIONS, "--dtype", "float32"), expected)


def test_v2_float32(model: Path, rows: Path, expected: list[dict[str, Any]]) -> None:
    options = (*OPTIONS, "--dtype", "float32", "--runner", "v2")
    assert_parity(answer("generate", model, rows, "v2", *options, by=apart), expected)


def test_tensor_parallel_2(model: Path, rows: Path, expected: list[dict[str, Any]]) -> None:
    """Same tokens, same alphas as one rank, whose answers are the reference's."""
    options = (*OPTIONS, "--dtype", "float32", "--tensor-parallel-size", "2")
    assert_parity(answer("generate", model, rows, "tp2", *options, by=apart), expected)


def test_v1_bfloat16(model: Path, rows: Path, expected: list[dict[str, Any]]) -> None:
    """On the CPU's bfloat16 layout steering adds no error of its own.

    Distances are between first-token log-probabilities. Smoothed rows (alpha <= 1) are as
    near to the bfloat16 reference as unsteered rows are. Sharpening also sharpens rounding
    errors, in transformers too, so all steered rows are held to the float32 reference: ours
    are no further from it than those of transformers in bfloat16.
    """
    half = ("--dtype", "bfloat16", "--logprobs", "20")
    theirs = answer("reference", model, rows, "reference16", *half)
    ours = answer("generate", model, rows, "v1-16", *OPTIONS, *half)
    plain, smoothed, our_error, their_error = [], [], [], []
    for row, other, truth in zip(ours, theirs, expected, strict=True):
        alpha = truth["adaptvis"]["alpha"]
        if not row["adaptvis"]["alpha"] == other["adaptvis"]["alpha"] == alpha:
            continue  # beside the threshold, rounding may choose the other alpha
        if alpha is None:
            plain.append(difference(row, other))
            continue
        if alpha <= 1:
            smoothed.append(difference(row, other))
        our_error.append(difference(row, truth))
        their_error.append(difference(other, truth))
    assert len(our_error) >= 40
    print(
        f"unsteered {mean(plain):.3f}, smoothed {mean(smoothed):.3f} from bfloat16; steered "
        f"{mean(our_error):.3f}, transformers {mean(their_error):.3f} from float32"
    )
    assert mean(smoothed) <= 1.25 * mean(plain)
    assert mean(our_error) <= 1.25 * mean(their_error)


@pytest.mark.parametrize("text", ["mistral", "gemma2"])
def test_window_and_softcap(tmp_path: Path, text: str) -> None:
    """Sliding windows in every (mistral) or every other layer; a soft cap (gemma2)."""
    model = make_llava(tmp_path / text, text=text)
    rows = [r for r in make_rows(tmp_path) if r["id"] % 3 == 0]
    path = write_rows(tmp_path / "in.jsonl", rows)
    theirs = answer("reference", model, path, "reference", "--logprobs", "5")
    ours = answer("generate", model, path, "v1", *OPTIONS, "--dtype", "float32")
    assert_parity(ours, theirs)
    assert sum(row["maps"] is not None for row in ours) >= 4


def test_bad_rows_are_error_rows(model: Path, rows: Path, tmp_path: Path) -> None:
    """Each bad row names its field; the good ones around it are answered."""
    good = {**read_rows(rows)[0], "image": str(rows.parent / "0.png")}
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    bad = [
        ({"image": "absent.png", "question": "?"}, "image"),
        ({"image": "broken.png", "question": "?"}, "image"),
        ({"image": 3, "question": "?"}, "image"),
        ({"image": "data:image/png;base64,@@", "question": "?"}, "image"),
        ({"question": 5}, "question"),
        ({"question": "a", "prompt": "b"}, "question"),
        ({}, "question"),
        ({"question": "?", "max_tokens": 0}, "max_tokens"),
        ({"question": "?", "temperature": "hot"}, "temperature"),
        ({"question": "?", "adaptvis": {"alpha": -1}}, "alpha"),
        ({"question": "?", "adaptvis": {"alfa": 1}}, "alpha"),
        ({"question": "?", "adaptvis": {"alpha": 2, "layers": "0-99"}}, "layers"),
        ({"question": "?", "adaptvis": {"alpha": 2, "heads": "0.4"}}, "heads"),
        ({"question": "?", "adaptvis": {"alpha": 2, "heads": "0.1", "layers": "0"}}, "heads"),
        ({"question": "?", "adaptvis": {"alpha": 2, "rule": "divide"}}, "rule"),
        ({"question": "?", "adaptvis": {"alpha": -2, "rule": "add_log"}}, "alpha"),
        ({"question": "?", "adaptvis": {"alpha": 2, "rows": "all"}}, "rows"),
        ({"question": "?", "adaptvis": {"candidates": 2, "options": ["on", "on top"]}}, "options"),
        ({**good, "adaptvis": {"alpha": 2, "images": "1"}}, "images"),
        ({"question": "?", "colour": 1}, "colour"),
        ({"prompt": "word " * 600}, "prompt"),
    ]
    lines = [good]
    for row, _ in bad:
        lines += [row, good]
    path = write_rows(tmp_path / "in.jsonl", lines)
    unreadable = [b"{not json", b'{"id": "caf\xe9"}', b'{"id": ' + b"9" * 5000 + b"}", b"[" * 5000]
    unreadable.append(b'{"id": "x\\ud83d"}')
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n".join(unreadable))
    out = tmp_path / "out.jsonl"
    files = ("--model", model, "--input", path, "--output", out)
    done = here("generate", *files, *OPTIONS, "--dtype", "float32")
    assert done.returncode == 3, done.stderr[-4000:]
    written = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(written) == len(lines) + len(unreadable)
    for row, (_, field) in zip(written[1::2], bad, strict=False):
        assert field in row["error"]
        assert row["token_ids"] is None
    answers = {tuple(row["token_ids"]) for row in written[: len(lines) : 2]}
    assert len(answers) == 1
    reasons = ("not JSON", "not UTF-8", "4300 digits", "nested", "id is no Unicode text")
    for number, reason in enumerate(reasons, len(lines)):
        assert written[number]["error"].startswith(f"line {number + 1}")
        assert reason in written[number]["error"]
