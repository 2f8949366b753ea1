"""Eager mode and TORCHDYNAMO_DISABLE go together on a CPU, unless compilation is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from adaptvis_vllm import cli
from adaptvis_vllm.batch.command import main as batch
from adaptvis_vllm.bench.runs import Settings
from adaptvis_vllm.engine.compilation import SWITCHES, VARIABLE, asked, settle
from adaptvis_vllm.options import engine_options, engine_parser
from adaptvis_vllm.serving.options import parse

# Words of a command line, and whether they ask for compilation.
ASKED: list[tuple[tuple[str, ...], bool | None]] = [
    ((), None),
    (("--dtype", "float32"), None),
    (("--compilation-config", '{"custom_ops": ["none"]}'), None),
    (("--enforce-eager",), False),
    (("-O0",), False),
    (("--compilation-config", '{"mode": "NONE"}'), False),
    (("-cc.mode=0",), False),
    (("--enforce-eager", "-O3"), False),  # as vLLM has it
    (("--no-enforce-eager",), True),
    (("-O2",), True),
    (("--optimization-level", "1"), True),
    (("-cc.mode=3",), True),
    (("-O0", "-cc.mode=3"), True),
]
UNSET = "unset"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What a command sets is gone afterwards. Called, sets the variable anew."""
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def given(value: str) -> None:
        os.environ.pop(VARIABLE, None)
        if value != UNSET:
            os.environ[VARIABLE] = value

    given(UNSET)
    return given


def options(*words: str) -> dict[str, Any]:
    parser = engine_parser("test", "")
    engine_options(parser)
    return vars(parser.parse_args(["--model", "some/model", *words]))


@pytest.mark.parametrize(("words", "wanted"), ASKED)
def test_what_a_command_line_asks_for(words: tuple[str, ...], wanted: bool | None) -> None:
    assert asked(options(*words)) is wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"model": "m", "compilation_config": {"custom_ops": []}}, None),
        ({"enforce_eager": True}, False),
        ({"compilation_config": 0}, False),
        ({"optimization_level": 0}, False),
        ({"enforce_eager": False}, True),
        ({"compilation_config": 3}, True),
        ({"compilation_config": {"mode": 3}}, True),
        ({"compilation_config": {"mode": "VLLM_COMPILE"}}, True),
        ({"optimization_level": 1}, True),
    ],
)
def test_what_arguments_of_an_llm_ask_for(given: dict[str, Any], wanted: bool | None) -> None:
    assert asked(given) is wanted


def state(settled: dict[str, Any]) -> tuple[bool | None, str | None]:
    return settled.get("enforce_eager"), os.environ.get(VARIABLE)


@pytest.mark.parametrize(("words", "wanted"), ASKED)
def test_options_and_variable_fit(words: tuple[str, ...], wanted: bool | None) -> None:
    """Of every command with an engine in its process, and of a server."""
    for settled in (settle(options(*words)), vars(parse(["some/model", *words])[0])):
        eager, variable = state(settled)
        assert bool(eager) == (not wanted)
        assert variable == (None if wanted else "1")
        assert settled.get("optimization_level", 2) is not None


def test_the_users_variable_wins(environment: Callable[[str], None]) -> None:
    environment("0")
    assert state(settle({})) == (None, "0")
    assert state(settle({"enforce_eager": True})) == (True, "0")
    environment("1")
    assert state(settle({})) == (True, "1")
    with pytest.raises(ValueError, match=f"{VARIABLE}=1 forbids"):
        settle({"optimization_level": 2})


def test_contradictions_end_commands_at_once(
    environment: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    environment("1")
    rows = tmp_path / "in.jsonl"
    rows.write_text("{}\n")
    files = ("--input", str(rows), "--output", str(tmp_path / "out.jsonl"))
    for argv in (
        ("serve", "some/model"),
        ("generate", "--model", "some/model", *files),
        ("batch", str(rows), "-o", str(tmp_path / "o.jsonl"), "--model", "some/model"),
    ):
        assert cli.main([*argv, "-O2"]) == 1
        error = capsys.readouterr().err.strip()
        assert error.splitlines()[-1].startswith(f"adaptvis {argv[0]}: {VARIABLE}=1 forbids")


def test_the_interpreter_compiles_nothing() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    assert state(settle({})) == (True, "1")
    os.environ.pop(VARIABLE)
    with pytest.raises(ValueError, match="--runner v2 on a CPU"):
        settle({"enforce_eager": False})


def test_a_gpu_is_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    assert settle({"model": "m", "enforce_eager": None, "optimization_level": None}) == {
        "model": "m"
    }
    assert VARIABLE not in os.environ


def test_bench(tmp_path: Any) -> None:
    """Engines of all systems are eager, or compiled where --engine says so."""
    model = str(tmp_path)
    assert state(Settings(model=model).options(1)) == (True, "1")
    os.environ.pop(VARIABLE)
    compiled = Settings(model=model, engine={"enforce_eager": False})
    assert state(compiled.options(1)) == (False, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), {}),
        (("--enforce-eager",), {"enforce_eager": True}),
        (("--no-enforce-eager",), {"enforce_eager": False}),
        (("-O2",), {"optimization_level": "2"}),
    ],
)
def test_workers_of_a_batch_are_told_what_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, words: tuple[str, ...], said: dict[str, Any]
) -> None:
    """Even where it is vLLM's default: they decide for themselves."""
    told: list[dict[str, Any]] = []

    def run(path: Any, output: Any, settings: Any, **_: Any) -> dict[str, Any]:
        told.append(settings.engine)
        raise KeyboardInterrupt

    monkeypatch.setattr("adaptvis_vllm.batch.driver.run", run)
    model = str(tmp_path)
    assert batch(["in.jsonl", "-o", str(tmp_path / "o.jsonl"), "--model", model, *words], "") == 130
    assert [{k: v for k, v in engine.items() if k in ("model", *SWITCHES)} for engine in told] == [
        {"model": model, **said}
    ]
