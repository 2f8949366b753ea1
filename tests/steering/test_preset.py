"""Preset files: what `calibrate` writes, every entrance reads."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaptvis_vllm import AdaptVis, Off, ScalingVis, SteeringParams
from adaptvis_vllm.options import STEERING, given_steering
from adaptvis_vllm.steering.defaults import max_candidates, server_defaults, steered_config
from adaptvis_vllm.steering.preset import expand, read_preset, write_preset

SETTINGS = (
    Off(),
    ScalingVis(0.8),
    ScalingVis(2.0, layers="0-3", span="interval"),
    AdaptVis(0.5, 1.5, 0.399),
    AdaptVis(0.5, 2.0, 0.25, confidence="margin", layers="0-31", confidence_decimals=2),
)


def defaults(values: Any) -> SteeringParams | None:
    return server_defaults(SimpleNamespace(additional_config={"adaptvis": values}))


@pytest.mark.parametrize("params", SETTINGS, ids=lambda p: p.mode)
def test_round_trip_through_every_entrance(params: SteeringParams, tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    write_preset(path, params, {"questions": 400})
    assert read_preset(path) == params
    # --preset FILE of batch, eval, generate and serve
    args = Namespace(**dict.fromkeys(STEERING) | {"preset": str(path)})
    assert SteeringParams.from_dict(given_steering(args)) == params
    # additional_config: a file's name, and a file's content
    assert defaults({"preset": str(path)}) == params
    content = json.loads(path.read_text())
    assert defaults(content["adaptvis"]) == params
    assert content["calibration"] == {"questions": 400}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
    # engines in other processes get the content, not the name
    for config, given in (({"adaptvis": {"preset": str(path)}}, {}), (None, {"preset": path})):
        assert defaults(steered_config(config, given)["adaptvis"]) == params
        assert "preset" not in steered_config(config, given)["adaptvis"]


def test_what_is_beside_the_preset_wins(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    write_preset(path, AdaptVis(0.5, 1.5, 0.4), {})
    given = {"preset": str(path), "threshold": 0.3, "layers": "0-1", "span": None}
    assert defaults(given) == AdaptVis(0.5, 1.5, 0.3, layers="0-1")
    with pytest.raises(ValueError, match="alpha does not go with mode 'adaptive'"):
        defaults({"preset": str(path), "alpha": 2.0})


def test_published_names_stay() -> None:
    assert expand({"preset": "coco", "layers": "0"}) == {"preset": "coco", "layers": "0"}
    assert defaults({"preset": "coco"}) == AdaptVis(preset="coco")
    assert expand({"alpha": 2.0}) == {"alpha": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'must hold {"adaptvis": {...}}'),
        ('{"adaptvis": 3}', 'must hold {"adaptvis": {...}}'),
        ('{"adaptvis": {}}', "adaptvis is empty"),
        ('{"adaptvis": {"mode": "off"}, "more": 1}', "unknown field 'more'"),
        ('{"adaptvis": {"alpha": 0}}', "alpha must be a number greater than 0"),
        ('{"adaptvis": {"alfa": 2}}', "unknown parameter alfa; did you mean alpha?"),
        ('{"adaptvis": {"alpha_low": 0.5}}', "alpha_high is missing"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_bad_files(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="preset file") as caught:
        defaults({"preset": str(path)})
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_steering_given_twice() -> None:
    with pytest.raises(ValueError, match="given twice"):
        steered_config({"adaptvis": {"alpha": 2.0}}, {"preset": "coco"})
    assert steered_config({"other": 1}, {"preset": "coco"}) == {
        "other": 1,
        "adaptvis": {"preset": "coco"},
    }
    assert steered_config(None, {}) == {}
    room = {"adaptvis": {"alpha": 2.0, "max_candidates": 5}}
    assert steered_config({"adaptvis": {"alpha": 2.0}}, {"max_candidates": 5}) == room


@pytest.mark.parametrize(
    ("values", "most"),
    [
        (None, 2),
        ({}, 2),
        ({"alpha": 2.0}, 2),
        ({"max_candidates": 1}, 1),
        ({"max_candidates": 64, "preset": "coco"}, 64),
        ({"candidates": [1, 2, 3, 4]}, 4),
        ({"candidates": [1, 2, 3, 4], "max_candidates": 7}, 7),
    ],
)
def test_room_for_candidates(values: dict[str, Any] | None, most: int) -> None:
    config = SimpleNamespace(additional_config={"adaptvis": values} if values is not None else None)
    assert max_candidates(config) == most
    given = {k: v for k, v in (values or {}).items() if k != "max_candidates"}
    assert server_defaults(config) == SteeringParams.from_dict(given)


def test_missing_files_and_misspelt_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset must be a file or one of .*did you mean coco\?"):
        defaults({"preset": "cocoo"})
    with pytest.raises(ValueError, match="cannot be read"):
        read_preset(tmp_path / "none.json")
    with pytest.raises(ValueError, match="preset must be a file or one of"):
        defaults({"preset": str(tmp_path)})


def test_a_request_cannot_make_the_server_read_a_file(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    write_preset(path, ScalingVis(2.0), {})
    with pytest.raises(ValueError, match="adaptvis_preset must be one of"):
        SteeringParams.from_flat({"adaptvis_preset": str(path)})
    with pytest.raises(ValueError, match="preset must be one of"):
        SteeringParams.from_dict({"preset": str(path)})


def test_heads_of_a_ranking(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({"heads": ["3.1", "0.2", "3.0"], "by": "auroc"}))
    assert expand({"heads": f"{path}:2", "alpha": 2}) == {"heads": ["3.1", "0.2"], "alpha": 2}
    params = SteeringParams.from_dict(expand({"heads": str(path), "alpha": 2}))
    assert params is not None
    assert params.heads == "0.2,3.0-1"
    assert expand({"heads": "3.1"}) == {"heads": "3.1"}
    for text, message in (
        (f"{path}:4", "ranks 1 to 3 heads, not 4"),
        (f"{path}:0", "ranks 1 to 3 heads, not 0"),
        (str(tmp_path / "absent.json"), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            expand({"heads": text})
    for content in ("[]", "{}", '{"heads": []}', '{"heads": [3.1]}', "?"):
        path.write_text(content)
        with pytest.raises(ValueError, match="must hold"):
            expand({"heads": str(path)})


def test_heads_beside_a_file_with_layers(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    write_preset(path, ScalingVis(2, layers="0-3"), {})
    found = SteeringParams.from_dict(expand({"preset": str(path), "heads": "1.0"}))
    assert found == ScalingVis(2, heads="1.0")
