"""Every benchmark runs, small, and counts what steering costs."""

from __future__ import annotations

import csv
import itertools
import json
import runpy
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptvis_vllm.bench import command
from adaptvis_vllm.bench.model import Shape, make_model
from adaptvis_vllm.bench.report import GPU_RECIPE
from adaptvis_vllm.bench.runs import Pool, Settings
from adaptvis_vllm.bench.shapes import SHAPES, write_shape
from adaptvis_vllm.bench.systems import system
from adaptvis_vllm.bench.throughput import Engines, in_turn
from adaptvis_vllm.bench.turns import Turn, percentile, summary
from adaptvis_vllm.bench.workloads import arrivals, tasks, workload
from adaptvis_vllm.cli import main

ROOT = Path(__file__).parents[2]
TINY = {
    "layers": 2,
    "hidden": 64,
    "heads": 2,
    "kv_heads": 1,
    "vocab": 300,
    "image": 56,
    "vision_layers": 2,
    "vision_hidden": 64,
}
REQUESTS, TOKENS = 3, 4


# -- without an engine ----------------------------------------------------------------


@pytest.mark.parametrize(("share", "steered"), [(0, 0), (10, 2), (50, 10), (100, 20)])
def test_a_mix_steers_its_share_evenly(share: int, steered: int) -> None:
    mix = system(f"mix-{share}")
    chosen = [mix.steers(number) is not None for number in range(20)]
    assert sum(chosen) == steered
    assert sum(chosen[:10]) == steered // 2


def test_a_round_asks_everybody_the_same_and_the_next_one_something_else() -> None:
    chosen = workload("images", images=2)
    one, again, other = (tasks(chosen, 2, seed) for seed in (0, 0, 1))
    assert [t.questions for t in one] == [t.questions for t in again]
    assert one[0].images[0].tobytes() == again[0].images[0].tobytes()
    pictures = {i.tobytes() for t in (*one, *other) for i in t.images}
    assert len(pictures) == 8
    shared = tasks(workload("shared"), 3, 0)
    assert len({i.tobytes() for t in shared for i in t.images}) == 1
    assert len({t.questions for t in shared}) == 3


def test_later_turns_quote_the_earlier_ones() -> None:
    (task,) = tasks(workload("multi-turn"), 1, 0)
    messages = task.messages(2)
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
    kinds = [part["type"] for m in messages for part in m["content"]]
    assert kinds.count("image_pil") == 1


def test_ratios_are_taken_within_a_round() -> None:
    """The second round is twice as slow for everybody: the ratio stays."""
    turns = {
        "vanilla": [Turn(1.0, 10, 10), Turn(2.0, 10, 10), Turn(1.0, 10, 10)],
        "adaptive": [Turn(1.25, 10, 10), Turn(2.5, 10, 10), Turn(1.0, 10, 10)],
    }
    rows = {row["system"]: row for row in summary(turns)}
    assert rows["adaptive"]["ratio"] == pytest.approx(0.8)
    assert rows["adaptive"]["ratio_max"] == 1.0
    assert rows["vanilla"]["requests_per_s"] == 10
    assert rows["vanilla"]["requests_per_s_min"] == 5


def test_every_launch_has_engines_of_its_own() -> None:
    made: list[str] = []

    class Nothing:
        def __init__(self, kind: str, options: dict[str, Any]) -> None:
            made.append(kind)
            self.closed = False

        def wait(self) -> None:
            assert not self.closed

        def close(self) -> None:
            self.closed = True

    engines = Engines(Nothing, {})
    pair = [system("vanilla"), system("adaptive")]
    rounds = in_turn(engines, pair, rounds=2, launches=2)
    order = [(n, s.name, engines.of(s)) for n, systems in rounds for s in systems]
    assert [(n, name) for n, name, _ in order] == [
        *((-1, "vanilla"), (-1, "adaptive"), (0, "vanilla"), (0, "adaptive")),
        *((1, "adaptive"), (1, "vanilla")),
        *((-1, "vanilla"), (-1, "adaptive"), (2, "vanilla"), (2, "adaptive")),
        *((3, "adaptive"), (3, "vanilla")),
    ]
    assert len(made) == 4
    assert len({id(engine) for _, _, engine in order}) == 4
    assert [engine.closed for _, _, engine in order] == [True] * 6 + [False] * 6


def test_percentile() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([0.0, 1.0], 99) == pytest.approx(0.99)
    assert percentile([], 50) is None


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    times = arrivals(20000, 4.0, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.05)
    assert spread == pytest.approx(mean, rel=0.05)
    assert times == arrivals(20000, 4.0, seed=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--systems", "vanilla,fast"], "'fast'"),
        (["--workload", "poem"], "'poem'"),
        (["--rounds", "0"], "--rounds"),
        (["--launches", "0"], "--launches"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--rate", "-1"], "--rate"),
        (["--shape", '{"heads": 5}'], "heads (5)"),
        (["--shape", '{"colour": 1}'], "--shape"),
        (["--engine", "[1]"], "--engine"),
        (["--model", "nowhere"], "'nowhere'"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", "throughput", "--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err
    assert named in error.splitlines()[-1]
    assert "Traceback" not in error


def test_each_run_of_all_says_the_command_that_repeats_it(tmp_path: Path) -> None:
    base = Settings(shape=Shape(**TINY), rate=2.0, requests=4, engine={"max_model_len": 512})
    plan = command.plan(base, ("float32", "bfloat16"))
    assert {what for what, _ in plan} == set(command.RUNS)
    assert len({one.name for _, one in plan}) == len(plan)
    for what, one in plan:
        words = shlex.split(one.command)
        assert words[:3] == ["adaptvis", "bench", what]
        args = command._parser("").parse_args(words[2:])
        again = command._settings(args, words)
        for name in ("model", "dtype", "workload", "requests", "concurrency", "rate", "changes"):
            assert getattr(again, name) == getattr(one, name)
        assert list(again.systems) == list(one.systems)
        assert (again.shape, again.engine) == (one.shape, one.engine)


def test_the_gpu_recipe_is_a_command() -> None:
    words = shlex.split(GPU_RECIPE)
    args = command._parser("").parse_args(words[2:])
    recipe = command._settings(args, words[2:])
    recipe.check()
    plan = command.plan(recipe, args.dtypes, gpus=1)
    assert {what for what, _ in plan} == set(command.RUNS) - {"context"}
    assert {one.dtype for _, one in plan} == {"bfloat16"}
    assert [one.workers for what, one in plan if what == "workers"] == [(1,)]


# -- with engines ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        shape=Shape(**TINY),
        requests=REQUESTS,
        concurrency=1,
        rounds=1,
        contexts=(128, 256),
        workers=(1,),
        changes={"max_tokens": TOKENS},
        engine={"max_model_len": 1024, "kv_cache_memory_bytes": 32 << 20},
        out=tmp_path_factory.mktemp("bench"),
        command="adaptvis bench",
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    one = Pool()
    yield one
    one.close()


def ran(what: str, settings: Settings, pool: Pool, **changes: Any) -> dict[str, Any]:
    """The saved result; its CSV and picture are there."""

    name = f"{what}-{len(list(settings.out.glob('*.json')))}"
    command.RUNS[what](replace(settings, name=name, **changes), pool)
    result = json.loads((settings.out / f"{name}.json").read_text())
    with (settings.out / f"{name}.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == len(result["rows"])
    assert (settings.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert result["machine"]["torch"]
    return result


def test_all_systems_and_what_they_count(settings: Settings, pool: Pool) -> None:
    """One at a time: a steered request is as many passes and tokens as an ordinary one."""
    names = ("vanilla", "idle", "scaling", "adaptive", "mix-34", "two-request", "reference")
    turns = {k: v[0] for k, v in ran("throughput", settings, pool, systems=names)["turns"].items()}
    plain = turns["vanilla"]
    assert plain["passes"] == REQUESTS * TOKENS
    assert plain["tokens"] == REQUESTS * TOKENS
    assert len(plain["ttft"]) == REQUESTS
    assert len(plain["itl"]) == REQUESTS * (TOKENS - 1)
    assert plain["blocks"] >= 1
    assert plain["peak_bytes"] > 1 << 20
    for name in ("idle", "scaling", "adaptive", "mix-34"):
        assert turns[name]["scheduled"] == plain["scheduled"], name
        assert turns[name]["passes"] == plain["passes"], name
    # The second request finds full blocks of its prompt in the prefix cache, no more.
    assert turns["two-request"]["passes"] == plain["passes"] + REQUESTS
    assert turns["two-request"]["scheduled"] > turns["adaptive"]["scheduled"]
    assert turns["idle"]["alphas"] == plain["alphas"] == [None] * REQUESTS
    assert set(turns["adaptive"]["alphas"]) <= {0.5, 1.5}
    assert turns["two-request"]["alphas"] == turns["adaptive"]["alphas"]
    assert turns["reference"]["alphas"] == turns["adaptive"]["alphas"][:2]


def test_requests_arrive_when_they_do(settings: Settings, pool: Pool) -> None:
    """Offline, at the times of a Poisson process; the same tokens however they share steps."""
    names = ("vanilla", "adaptive")
    result = ran("throughput", settings, pool, systems=names, rate=20.0)
    assert result["settings"]["arrivals"] == "Poisson arrivals, 20/s"
    assert [note.partition(":")[0] for note in result["notes"][-2:]] == list(names)
    assert "times vanilla's" in result["notes"][-1]
    plain, adaptive = (result["turns"][name][0] for name in names)
    assert plain["requests"] == adaptive["requests"] == REQUESTS
    assert plain["scheduled"] == adaptive["scheduled"]
    assert plain["seconds"] > arrivals(REQUESTS, 20.0, 0)[-1]


def test_turns_of_a_conversation_follow_each_other(settings: Settings, pool: Pool) -> None:
    result = ran(
        *("throughput", settings, pool),
        systems=("vanilla", "adaptive"),
        workload="multi-turn",
        concurrency=2,
    )
    (plain,), (adaptive,) = result["turns"].values()
    assert plain["requests"] == adaptive["requests"] == 3 * REQUESTS
    assert adaptive["scheduled"] == plain["scheduled"]


def test_profile_accounts_for_the_whole_time(settings: Settings, pool: Pool) -> None:
    result = ran("profile", settings, pool, systems=("vanilla", "adaptive"))
    plain, adaptive, difference = result["rows"]
    for row in (plain, adaptive):
        parts = sum(v for k, v in row.items() if k not in ("system", "total"))
        assert parts == pytest.approx(row["total"])
        assert row["attention"] > 0
        assert row["scheduler"] > 0
    assert plain["steering rows"] == plain["steering plan"] == 0
    assert adaptive["steering rows"] > 0
    assert difference["steering rows"] == adaptive["steering rows"]


def test_sweeps(settings: Settings, pool: Pool) -> None:
    share = ran("share", settings, pool)
    assert [row["x"] for row in share["rows"]] == [0, 25, 50, 75, 100]
    images = ran("images", settings, pool, systems=("vanilla", "adaptive"), requests=1)
    assert [row["x"] for row in images["rows"]] == [1, 2, 4]
    tokens = [row["scheduled"] for row in images["rows"]]
    assert tokens[2] - tokens[1] == 2 * (tokens[1] - tokens[0])


def test_context_counts_the_bytes_of_the_row(settings: Settings, pool: Pool) -> None:
    rows = ran("context", settings, pool)["rows"]
    assert [row["bytes"] for row in rows] == [2 * 32 * c * b for b in (4, 2) for c in (128, 256)]
    assert all(row["steer_us"] > 0 and row["read_us"] > 0 for row in rows)


@pytest.fixture(scope="module")
def served(settings: Settings) -> Settings:
    """Of the one server that tests ask; prompts fill blocks, which its prefix cache holds."""
    return replace(settings, engine=settings.engine | {"block_size": 32})


def test_serving(served: Settings, pool: Pool) -> None:
    """A real server, both kinds of arrival."""
    systems = ("idle", "adaptive", "two-request")
    fixed = ran("serve", served, pool, systems=systems, concurrency=2)["turns"]
    for (turn,) in fixed.values():
        assert len(turn["ttft"]) == REQUESTS
        assert len(turn["itl"]) == REQUESTS * (TOKENS - 1)
    assert set(fixed["adaptive"][0]["alphas"]) <= {0.5, 1.5}
    assert fixed["two-request"][0]["alphas"] == fixed["adaptive"][0]["alphas"]
    ran("serve", served, pool, systems=("idle", "adaptive"), rate=20.0)


def test_no_system_finds_what_another_left_in_a_server(served: Settings, pool: Pool) -> None:
    """They are asked the same: without empty caches the second would be answered from them."""
    ran("serve", served, pool, systems=("idle",))
    url = pool._current.of(system("idle")).url
    before = prefix_cache(url)
    ran("serve", served, pool, systems=("idle", "scaling"))
    after = prefix_cache(url)
    assert after["queries_total"] - before["queries_total"] > 2 * REQUESTS * 32
    assert after["hits_total"] == before["hits_total"]


def prefix_cache(url: str) -> dict[str, float]:
    """Tokens that were looked for in a server's prefix cache, and found."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: sum(float(x.split()[-1]) for x in lines if x.startswith(f"vllm:prefix_cache_{name}"))
        for name in ("queries_total", "hits_total")
    }


def test_workers(settings: Settings, pool: Pool) -> None:
    with pytest.raises(ValueError, match="--requests must be >= 256 to keep 2 workers busy"):
        ran("workers", settings, pool, workers=(1, 2))
    (row,) = ran("workers", settings, pool)["rows"]
    assert row["workers"] == 1
    assert row["whole_rows_per_s"] > 0


def test_report_has_every_result(settings: Settings) -> None:
    """Runs after the others: the page of what they left."""
    results = [json.loads(f.read_text()) for f in settings.out.glob("*.json")]
    assert main(["bench", "report", "--out", str(settings.out)]) == 0
    text = (settings.out / "RESULTS.md").read_text()
    for result in results:
        assert result["title"] in text
    assert text.count(".png)") == len(results)
    assert str(settings.out) not in text


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", "--out", str(tmp_path)]) == 1
    assert "holds no results" in capsys.readouterr().err


# -- the scripts ----------------------------------------------------------------------


def test_batch_script() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/batch.py", "--rows", "12", "--repeats", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert names >= {"LLM.chat", "--workers", "lock-step", "calls"}


def script(name: str, *words: str, patch: pytest.MonkeyPatch) -> None:
    """Run a script of benchmarks/ in this process."""
    patch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")


def test_kernel_script_counts_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script("kernel.py", "--contexts", "128", "32768", patch=monkeypatch)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (short, long) = [line for line in lines if line[0] == "LLaVA-1.5-7B"]
    # Memory that a row moves grows with its context, but for its query and answer.
    assert float(long[2]) == pytest.approx(256 * float(short[2]), rel=0.02)


def test_matrices_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--rows", "8", "10", "--repeats", "1")
    script("matrices.py", *options, patch=monkeypatch)
    _, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (first[0], first[2]) == ("8", "1.000")
    assert (second[0], second[3]) == ("10", "1.2500")


def test_a_model_is_made_again_the_same(tmp_path: Path) -> None:
    for name in "ab":
        make_model(tmp_path / name, Shape(**TINY))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_named_shapes_can_be_steered(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their folders hold no weights, and vLLM makes the layers of each, which run for no test: so
    wide, they take a minute."""
    from vllm.engine.arg_utils import EngineArgs

    from adaptvis_vllm.doctor import model as doctor_model

    monkeypatch.setattr(doctor_model, "differences", lambda engine_args: {})
    folder = write_shape(tmp_path / name, name)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 100_000
    args = EngineArgs(model=str(folder), dtype="bfloat16", load_format="dummy")
    text, works = doctor_model.report(args)
    assert works, text
    config = json.loads((folder / "config.json").read_text())["text_config"]
    assert f"0-{config['num_hidden_layers'] - 1}: full" in text or "window 1024" in text


def test_shape_is_a_name_or_json(tmp_path: Path) -> None:
    settings = Settings(shape="llava-1.5-7b", dtype="bfloat16", out=tmp_path)
    options = settings.options(2)
    assert options["load_format"] == "dummy"
    assert options["model"] == str(tmp_path / "llava-1.5-7b")
    assert command.one_command("throughput", settings).endswith("--shape llava-1.5-7b")
    with pytest.raises(ValueError, match="is no JSON and not one of"):
        command.main(["throughput", "--shape", "llava"], "")
    with pytest.raises(ValueError, match="reference needs weights"):
        Settings(shape="qwen2.5-vl-7b", systems=("vanilla", "reference")).check()
