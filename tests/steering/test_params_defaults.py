"""A request's parameters on top of the server's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from adaptvis_vllm import AdaptVis, Candidates, Off, ScalingVis, SteeringParams

DEFAULT = AdaptVis(0.5, 1.5, 0.4, layers="0-3", confidence="margin", confidence_decimals=2)


@pytest.mark.parametrize(
    ("request_keys", "default", "expected"),
    [
        ({}, None, None),
        ({}, DEFAULT, DEFAULT),
        ({"mode": "off"}, DEFAULT, dataclasses.replace(DEFAULT, mode="off", alpha_low=None,
                                                       alpha_high=None, threshold=None)),
        ({"threshold": 0.3}, DEFAULT, dataclasses.replace(DEFAULT, threshold=0.3)),
        ({"mode": "adaptive"}, DEFAULT, DEFAULT),
        ({"span": "interval"}, DEFAULT, dataclasses.replace(DEFAULT, span="interval")),
        ({"layers": "all", "confidence_decimals": "none"}, DEFAULT,
         AdaptVis(0.5, 1.5, 0.4, confidence="margin")),
        ({"preset": "vg"}, DEFAULT,
         dataclasses.replace(DEFAULT, preset="vg", alpha_high=2.0, threshold=0.2)),
        ({"alpha": 2}, DEFAULT, SteeringParams("scaling", 2, layers="0-3", confidence="margin",
                                               confidence_decimals=2)),
        ({"alpha": 2}, ScalingVis(0.5), ScalingVis(2)),
        ({"layers": "1"}, ScalingVis(preset="vsr"), ScalingVis(0.5, layers="1")),
        ({"preset": "coco"}, Off(), AdaptVis(preset="coco")),
        ({"candidates": [2]}, DEFAULT,
         SteeringParams(candidates=(2.0,), layers="0-3", confidence="margin",
                        confidence_decimals=2)),
        ({"layers": "1"}, Candidates([0.5, 2]), Candidates([0.5, 2], layers="1")),
        ({"heads": "1.0"}, DEFAULT, dataclasses.replace(DEFAULT, layers=None, heads="1.0")),
        ({"layers": "1"}, ScalingVis(2, heads="1.0"), ScalingVis(2, layers="1")),
        ({"layers": "all"}, ScalingVis(2, heads="1.0"), ScalingVis(2)),
        ({"images": "1"}, ScalingVis(2, span="interval"), ScalingVis(2, images="1")),
        ({"span": "video"}, ScalingVis(2, images="1"), ScalingVis(2, span="video")),
        ({"alpha": -1}, ScalingVis(0, rule="pai"), ScalingVis(-1, rule="pai")),
        ({"rule": "pai", "alpha": -1}, ScalingVis(2), ScalingVis(-1, rule="pai")),
        ({"alpha": 1}, AdaptVis(1, 2, 0, options=("a", "b")), ScalingVis(1)),
        ({"candidates": 1}, AdaptVis(1, 2, 0, options=("a", "b")),
         Candidates([1], options=("a", "b"))),
        ({"alpha": 1}, ScalingVis(2, rows="generated"), ScalingVis(1, rows="generated")),
        ({"candidates": 1}, ScalingVis(2, rows="generated"), Candidates([1])),
        ({"preset": "vsr"}, ScalingVis(2, rows="generated"), ScalingVis(preset="vsr")),
        ({"options": "none"}, AdaptVis(1, 2, 0, options=("a", "b")), AdaptVis(1, 2, 0)),
        ({"preset": "coco"}, ScalingVis(0, rule="pai"), AdaptVis(preset="coco")),
        ({"mode": "candidates"}, Candidates([0.5, 2]), Candidates([0.5, 2])),
    ],
)  # fmt: skip
def test_defaults(
    request_keys: dict[str, Any], default: SteeringParams | None, expected: SteeringParams | None
) -> None:
    flat = {f"adaptvis_{k}": v for k, v in request_keys.items()}
    assert SteeringParams.from_flat({**flat, "other": 1}, defaults=default) == expected
    assert SteeringParams.from_dict(request_keys, defaults=default) == expected


@pytest.mark.parametrize(
    ("request_keys", "default", "message"),
    [
        ({"layers": "1"}, Off(), "adaptvis_mode is missing"),
        ({"threshold": 0.3}, ScalingVis(2), "adaptvis_alpha_low is missing"),
        ({"mode": "scaling"}, DEFAULT, "adaptvis_alpha is missing"),
        ({"rule": "pai"}, ScalingVis(2), "adaptvis_alpha is missing"),
        ({"alpha": -1}, ScalingVis(2), "adaptvis_alpha must be"),
        ({"threshold": 3}, DEFAULT, "adaptvis_threshold must be"),
    ],
)
def test_defaults_do_not_hide_errors(
    request_keys: dict[str, Any], default: SteeringParams, message: str
) -> None:
    flat = {f"adaptvis_{k}": v for k, v in request_keys.items()}
    with pytest.raises(ValueError, match=f"^{message}"):
        SteeringParams.from_flat(flat, defaults=default)
