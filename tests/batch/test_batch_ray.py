"""Batch jobs on Ray: nothing is lost, nothing is done twice, whoever dies.

ADAPTVIS_TEST_ROWS: rows of each job, 300 if not given; 2000 is the full size.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.batch_cases import (
    ENGINE,
    FULL,
    finished,
    good_row,
    read,
    run,
    start,
    write_questions,
)
from support.commands import here
from support.waiting import HANG_S, until

ROWS = int(os.environ.get("ADAPTVIS_TEST_ROWS", "300"))
KILLS = 5 if FULL else 1  # of the driver
WORKERS = 2 if FULL else 1  # of a driver that is killed
DEATHS = (0.2, 0.5) if FULL else (0.3,)  # of engines, after these shares of the rows


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("batch"), ROWS)


@pytest.fixture(scope="module")
def folder(questions: Path) -> Path:
    return questions.parent


@pytest.fixture(scope="module")
def expected(model: Path, questions: Path) -> list[dict[str, Any]]:
    """What `adaptvis generate` answers."""
    out = questions.with_name("generated.jsonl")
    run("generate", "--model", model, "--input", questions, "--output", out, *ENGINE, by=here)
    return read(out)


def same(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        mine, theirs = dict(row["adaptvis"]), dict(other["adaptvis"])
        assert mine.pop("confidence") == pytest.approx(theirs.pop("confidence"), abs=1e-4)
        assert mine == theirs
        assert {**row, "adaptvis": 0} == {**other, "adaptvis": 0}


def await_rows(output: Path, job: psutil.Popen, rows: int) -> None:
    """Until so many rows are finished, or the job is."""
    until(lambda: finished(output) >= rows or job.poll() is not None)


def engines(job: psutil.Popen) -> list[psutil.Process]:
    found = []
    for process in job.children(recursive=True):
        try:
            if any("MapWorker" in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_workers_killed(
    model: Path, questions: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """An engine's process dies midway."""
    out, log = tmp_path / "out.jsonl", tmp_path / "log"
    files = ("batch", questions, "-o", out, "--workers", 2, "--model", model)
    job = start(log, *files, *ENGINE)
    killed = []
    try:
        for share in DEATHS:
            await_rows(out, job, int(share * ROWS))
            alive = engines(job)
            assert alive, log.read_text()[-4000:]
            alive[0].kill()
            killed.append(alive[0].pid)
        assert job.wait(HANG_S) == 0, log.read_text()[-4000:]
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait(HANG_S)
    assert len(set(killed)) == len(DEATHS)
    same(read(out), expected)
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert (summary["rows"], summary["errors"], summary["attempts"]) == (ROWS, 0, 1)


def test_driver_killed(
    model: Path, questions: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL at random moments; --resume finishes and repeats no finished row."""
    out, log = tmp_path / "out.jsonl", tmp_path / "log"
    files = ("batch", questions, "-o", out, "--resume", "--workers", WORKERS, "--model", model)
    for kill in range(KILLS):
        job = start(log, *files, *ENGINE)
        now = finished(out)
        await_rows(out, job, now + random.randint(1, (ROWS - now) // (KILLS + 1 - kill)))
        assert job.poll() is None, log.read_text()[-4000:]
        print("killed at", finished(out), "rows")
        workers, family = engines(job), job.children(recursive=True)
        job.send_signal(signal.SIGKILL)
        job.wait(HANG_S)
        _, alive = psutil.wait_procs(workers, HANG_S)
        assert not alive, f"left behind: {alive}"
        for process in family:  # Ray's agents take a minute to notice
            if process.is_running():
                process.kill()
    before = finished(out)
    run(*files, *ENGINE)
    same(read(out), expected)
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["attempts"] == KILLS + 1
    assert summary["this_attempt"]["rows"] <= ROWS - before


def test_dataset(model: Path, folder: Path) -> None:
    """A user's dataset: pictures as bytes, a column kept, a bad row among good ones."""
    import ray

    from adaptvis_vllm.batch import Settings, answer
    from adaptvis_vllm.batch.pool import connected

    rows = [good_row(n) for n in range(40)]
    engine = {
        "model": str(model),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 64 * 2**20,
        "max_num_seqs": 16,
        "additional_config": {"adaptvis": {"alpha": 3.0}},
    }
    for row in rows:
        del row["adaptvis"]
        row["image"] = (folder / row["image"]).read_bytes()
        row["label"] = f"label {row['id']}"
    rows[3]["image"] = b"broken"
    rows[5]["image"] = None
    settings = Settings(engine, workers=1, cpus=1)
    with connected(settings):
        out = answer(ray.data.from_items(rows), engine, cpus=1, keep=("label",), batch_size=16)
        answers = sorted(out.take_all(), key=lambda row: row["id"])
    assert [row["label"] for row in answers] == [f"label {n}" for n in range(40)]
    assert "no readable image" in answers[3]["error"]
    assert "image is null" in answers[5]["error"]
    assert all((row["error"] is None) == (row["id"] not in (3, 5)) for row in answers)
    assert {row["adaptvis"]["alpha"] for row in answers if row["error"] is None} == {3.0}


@pytest.mark.parametrize("workers", [0, 2])
def test_memory(tmp_path: Path, workers: int) -> None:
    """The driver's memory does not grow with the rows. 200,000 at full size."""
    rows = 200_000 if FULL else 40_000
    script = Path(__file__).parents[1] / "support" / "batch_memory.py"
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(rows), str(workers), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(script.parents[1])},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    print(result)
    assert result["answers"] == rows
    if result["early_mib"] is not None:  # null when all was over between two looks
        assert result["late_mib"] - result["early_mib"] < 40


def test_engine_that_cannot_start(model: Path, questions: Path, tmp_path: Path) -> None:
    """A failure with its reason, not a hang; the job is there to go on with."""
    files = ("batch", questions, "-o", tmp_path / "out.jsonl", "--model", model, *ENGINE)
    done = run(*files, "--max-model-len", 10**8, code=1)
    assert "max_model_len" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
