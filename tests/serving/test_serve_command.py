"""`adaptvis serve`: options, checked before anything is loaded, and the environment."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from adaptvis_vllm import cli
from adaptvis_vllm.serving import options

ADAPTIVE = ("--alpha-low", "0.5", "--alpha-high", "1.5", "--threshold", "0.4")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets is gone afterwards."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def parsed(*argv: str) -> Any:
    return options.parse(["some/model", *argv])[0]


def test_steering_becomes_a_default_of_the_server() -> None:
    args = parsed(*ADAPTIVE, "--layers", "0-3", "--port", "8123")
    given = {"alpha_low": 0.5, "alpha_high": 1.5, "threshold": 0.4, "layers": "0-3"}
    assert args.additional_config == {"adaptvis": given}
    assert (args.model, args.port, args.subparser) == ("some/model", 8123, "serve")
    assert not {"replicas", "ray_address"} & set(vars(args))
    assert not [name for name in vars(args) if name.startswith("steering")]
    every = ("--adaptvis-mode", "adaptive", "--preset", "coco", "--confidence", "margin")
    args = parsed(*every, "--confidence-decimals", "2", "--span", "interval")
    assert args.additional_config["adaptvis"]["confidence_decimals"] == 2


def test_other_configuration_stays() -> None:
    args = parsed("--alpha", "2", "--additional-config", '{"other": 1}')
    assert args.additional_config == {"other": 1, "adaptvis": {"alpha": 2.0}}
    assert "adaptvis" not in (parsed().additional_config or {})
    given = '{"adaptvis": {"preset": "vsr"}}'
    assert parsed("--additional-config", given).additional_config == {"adaptvis": {"preset": "vsr"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alpha", "-1"), "alpha must be"),
        (("--alpha", "nan"), "alpha must be"),
        (("--alpha-low", "0.5"), "alpha_high is missing"),
        (("--adaptvis-mode", "on"), "mode must be"),
        (("--preset", "koko"), "preset must be .*coco"),
        (("--alpha", "2", "--layers", "3-1"), "layers must be"),
        (("--alpha", "2", "--threshold", "0.5"), "alpha .* threshold"),
        (("--preset", "coco", "--confidence-decimals", "9"), "confidence_decimals must be"),
        (("--alpha", "2", "--additional-config", '{"adaptvis": {"alpha": 1}}'), "given twice"),
        (("--additional-config", '{"adaptvis": {"alpha": "x"}}'), "additional-config.*alpha must"),
        (("--additional-config", '{"adaptvis": 3}'), "must be an object"),
        (("--replicas", "0"), "--replicas must be"),
    ],
)
def test_one_sentence_before_anything_is_loaded(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "no/such/model", *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("adaptvis serve: ")
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error


def test_the_model_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Positional, as --model, or in the configuration file."""
    assert cli.main(["serve", "--alpha", "2"]) == 1
    assert capsys.readouterr().err == "adaptvis serve: MODEL is needed\n"
    file = tmp_path / "serve.yaml"
    file.write_text("model: some/model\n")
    for argv in (["--model", "some/model"], ["--config", str(file)]):
        assert options.parse(argv)[0].model == "some/model"


def test_a_configuration_file(tmp_path: Path) -> None:
    """vLLM's --config takes our options too."""
    file = tmp_path / "serve.yaml"
    file.write_text("alpha: 2.0\nport: 8124\nserved-model-name: mine\n")
    args = parsed("--config", str(file))
    assert args.additional_config == {"adaptvis": {"alpha": 2.0}}
    assert args.port == 8124


def test_cache_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of a CPU's memory for each engine; the user's own settings stay."""
    monkeypatch.setattr(
        "adaptvis_vllm.serving.options.cache_bytes", lambda given, share: given or share
    )
    for name in ("TORCHDYNAMO_DISABLE", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    assert parsed("--kv-cache-memory-bytes", "1G").kv_cache_memory_bytes == 2**30
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    assert parsed("--replicas", "2").kv_cache_memory_bytes == 0.125
    assert os.environ["TORCHDYNAMO_DISABLE"] == "0"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert int(os.environ["OMP_NUM_THREADS"]) >= 1


def test_the_most_replicas_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled up, they must have room."""
    monkeypatch.setattr("adaptvis_vllm.serving.options.cache_bytes", lambda given, share: share)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    args = parsed("--replicas", "1", "--max-replicas", "4")
    assert args.kv_cache_memory_bytes == 0.25 / 4
    assert os.environ["OMP_NUM_THREADS"] == "4"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


@pytest.mark.parametrize(
    "words",
    [
        ("--max-replicas", "4"),
        ("--cpus-per-replica", "1"),
        ("--gpus-per-replica", "0"),
        ("--max-ongoing-requests", "8"),
        ("--drain-timeout", "1"),
    ],
)
def test_options_of_replicas_need_some(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["serve", str(tmp_path), *words]) == 1
    assert capsys.readouterr().err.endswith(f"adaptvis serve: {words[0]} needs --replicas\n")


def test_plugins() -> None:
    """Our routes are named; whatever would have been loaded without the variable still is."""
    names = options.allowed_plugins(None).split(",")
    assert "adaptvis" in names
    assert {p.name for p in entry_points(group="vllm.general_plugins")} <= set(names)
    assert {p.name for p in entry_points(group="vllm.platform_plugins")} <= set(names)
    assert options.allowed_plugins("adaptvis,mine") == "adaptvis,mine"
    with pytest.raises(ValueError, match="VLLM_PLUGINS is 'mine'"):
        options.allowed_plugins("mine")
