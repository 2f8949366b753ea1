"""`adaptvis batch`: options that are checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptvis_vllm import cli


@pytest.mark.parametrize(
    "words", [("--ray-address", "auto"), ("--cpus-per-worker", "1"), ("--gpus-per-worker", "1")]
)
def test_options_of_workers_need_some(
    words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text("{}\n")
    argv = ["batch", str(rows), "-o", str(tmp_path / "out.jsonl"), "--model", str(tmp_path)]
    assert cli.main([*argv, "--workers", "0", *words]) == 1
    assert capsys.readouterr().err == f"adaptvis batch: {words[0]} does not go with --workers 0\n"
