"""The parameters, field by field: no model, no engine."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptvis_vllm import AdaptVis, Candidates, Off, ScalingVis, SteeringParams
from adaptvis_vllm.steering.fields import ADAPTIVE_PRESETS, SCALING_PRESETS

ADAPTIVE = {"mode": "adaptive", "alpha_low": 0.5, "alpha_high": 1.5, "threshold": 0.4}
SCALING = {"mode": "scaling", "alpha": 0.8}
NAN, INF = float("nan"), float("inf")

BAD_ALPHA = [0, 0.0, -1, 1e-300, 100.1, 10**400, NAN, INF, -INF, "0.5", "", True, [0.5], {}, None]
BAD_VALUES: dict[str, list[Any]] = {
    "mode": ["", "Adaptive", "on", 1, True, ["off"]],
    "alpha": BAD_ALPHA[:-1],
    "alpha_low": BAD_ALPHA[:-1],
    "alpha_high": BAD_ALPHA[:-1],
    "threshold": [-0.1, 1.01, NAN, INF, "0.4", True, [0.4], 10**400],
    "layers": ["", "a", "3-1", "-1", "1-", "0,,2", "0;1", "1.5", 1.0, -1, True, [], [True], [0.0],
               [-1], "10000", "0-99999999999", {}, [[0]], "all,1", "٣"],
    "confidence": ["maxprob", "", 1, True, ["margin"]],
    "confidence_decimals": [-1, 7, 2.0, "2", "", True, NAN, [2]],
    "span": ["frames", "", 0, True],
    "preset": ["", "COCO", "controlled", 3, True],
    "candidates": [*BAD_ALPHA[:7], "", "a", "0.5,", "0.5;1", "1_0", "nan", "٣", True, [], {},
                   [True], ["0.5"], [0.5, 0], [0.5, 0.5], "1,1.0", [NAN], [[0.5]],
                   [1 + i for i in range(65)]],
    "maps": ["", "a", "3-1", "-1", 1.0, True, [], [True], "10000", {}, "all,1", "off"],
    "maps_tokens": [-1, 1025, 1.0, "1", "", True, NAN, [2]],
}  # fmt: skip
CASES = [(f, v) for f, values in BAD_VALUES.items() for v in values]


def around(field: str) -> dict[str, Any]:
    """Otherwise valid parameters in which `field` has a place."""
    if field in ("candidates", "maps", "maps_tokens"):
        return {}
    base = SCALING if field == "alpha" else {"mode": "adaptive", "preset": "coco"}
    return {k: v for k, v in base.items() if k != field}


def test_every_field_has_bad_values() -> None:
    assert set(BAD_VALUES) == {f.name for f in dataclasses.fields(SteeringParams)}


@pytest.mark.parametrize(("field", "value"), CASES, ids=lambda v: repr(v)[:24])
def test_a_bad_value_is_named(field: str, value: Any) -> None:
    values = {**around(field), field: value}
    with pytest.raises(ValueError, match=rf"^{field} must be ") as plain:
        SteeringParams.from_dict(values)
    with pytest.raises(ValueError, match=rf"^adaptvis_{field} must be "):
        SteeringParams.from_flat({f"adaptvis_{k}": v for k, v in values.items()})
    if (field, value) != ("mode", ""):
        with pytest.raises(ValueError, match=rf"^{field} must be "):
            SteeringParams(**values)
    assert repr(value)[:40] in str(plain.value)


GOOD_VALUES = [
    ("alpha", 1, 1.0),
    ("alpha", 100, 100.0),
    ("alpha", 1e-6, 1e-6),
    ("alpha", np.float32(0.5), 0.5),
    ("alpha", np.int64(2), 2.0),
    ("threshold", 0, 0.0),
    ("threshold", 1, 1.0),
    ("layers", "0-31", "0-31"),
    ("layers", "7,0-2,3, 5 - 6", "0-3,5-7"),
    ("layers", [2, 0, 1], "0-2"),
    ("layers", (4,), "4"),
    ("layers", ["0-1", 5], "0-1,5"),
    ("layers", 3, "3"),
    ("layers", "all", None),
    ("confidence", "margin", "margin"),
    ("confidence", "entropy", "entropy"),
    ("confidence_decimals", 0, 0),
    ("confidence_decimals", 6, 6),
    ("confidence_decimals", "none", None),
    ("span", "interval", "interval"),
    ("span", "all", "embeddings"),
    ("candidates", 0.5, (0.5,)),
    ("candidates", "2, 0.5", (2.0, 0.5)),
    ("candidates", [1, np.float32(0.5), 100], (1.0, 0.5, 100.0)),
]


@pytest.mark.parametrize(("field", "value", "canonical"), GOOD_VALUES, ids=lambda v: repr(v)[:24])
def test_a_good_value_is_made_canonical(field: str, value: Any, canonical: Any) -> None:
    params = SteeringParams.from_dict({**around(field), field: value})
    assert params is not None
    result = getattr(params, field)
    assert result == canonical
    assert type(result) is type(canonical)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "scaling"}, "alpha is missing"),
        ({"mode": "adaptive"}, "alpha_low is missing"),
        ({"mode": "adaptive", "alpha_low": 1, "alpha_high": 2}, "threshold is missing"),
        ({"threshold": 0.5}, "alpha_low is missing"),
        ({"layers": "0-3"}, "mode is missing"),
        ({**ADAPTIVE, "alpha": 1}, "alpha does not go with mode 'adaptive'"),
        ({**SCALING, "alpha_low": 1}, "alpha_low does not go with mode 'scaling'"),
        ({**SCALING, "threshold": 1}, "threshold does not go with mode 'scaling'"),
        ({"alpha": 1, "alpha_high": 1}, r"alpha \(mode 'scaling'\) does not go with alpha_high"),
        ({"mode": "off", "alpha": 1}, "alpha does not go with mode 'off'"),
        ({"mode": "off", "preset": "coco"}, "preset does not go with mode 'off'"),
        ({"mode": "adaptive", "preset": "vsr"}, "preset 'vsr' has no setting"),
        ({"mode": "candidates"}, "candidates is missing"),
        ({"candidates": [2], "alpha": 1}, "alpha does not go with mode 'candidates'"),
        ({"candidates": [2], "threshold": 1}, "threshold does not go with mode 'candidates'"),
        ({"candidates": [2], "preset": "coco"}, "preset does not go with mode 'candidates'"),
        ({**SCALING, "candidates": [2]}, "candidates does not go with mode 'scaling'"),
        ({**ADAPTIVE, "candidates": [2]}, "candidates does not go with mode 'adaptive'"),
        ({"mode": "off", "candidates": [2]}, "candidates does not go with mode 'off'"),
        ({"alpha_lo": 1}, r"unknown parameter alpha_lo; did you mean alpha_low\?"),
        ({"adaptvis_alpha": 1}, "unknown parameter adaptvis_alpha"),
        ({"zzz": 1}, "unknown parameter zzz$"),
    ],
)
def test_combinations_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SteeringParams.from_dict(values)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("adaptvis_treshold", "adaptvis_threshold"),
        ("adaptvis_alpha_hi", "adaptvis_alpha_high"),
        ("adaptvis-alpha", "adaptvis_alpha"),
        ("AdaptVis_mode", "adaptvis_mode"),
        ("adaptvis_", None),
        ("adaptvis", None),
    ],
)
def test_unknown_flat_keys(key: str, hint: str | None) -> None:
    with pytest.raises(ValueError, match=r"^unknown parameter") as error:
        SteeringParams.from_flat({key: 1})
    assert key in str(error.value)
    assert hint is None or f"did you mean {hint}?" in str(error.value)


def test_the_hint_names_a_choice() -> None:
    with pytest.raises(ValueError, match=r"did you mean controlled_a\?"):
        SteeringParams(preset="controled_a")


def test_nothing_given() -> None:
    assert SteeringParams.from_flat(None) is None
    assert SteeringParams.from_flat({"other": 1, "kv_transfer_params": {}}) is None
    assert SteeringParams.from_flat({"adaptvis_alpha": None}) is None
    assert SteeringParams.from_dict({}) is None
    with pytest.raises(ValueError, match=r"^mode is missing"):
        SteeringParams()
    for bad in ("adaptive", None, [1]):
        with pytest.raises(ValueError, match=r"^adaptvis must be an object"):
            SteeringParams.from_dict(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ({"alpha": 2}, "scaling"),
        ({"alpha_low": 1, "alpha_high": 2, "threshold": 0}, "adaptive"),
        ({"candidates": (2.0, 0.5)}, "candidates"),
        ({"preset": "coco"}, "adaptive"),
        ({"preset": "vsr"}, "scaling"),
        ({"preset": "coco", "alpha": 2}, "scaling"),
        ({"preset": "coco", "threshold": 0.1}, "adaptive"),
        ({"preset": "coco", "mode": "scaling"}, "scaling"),
    ],
)
def test_inferred_mode(values: dict[str, Any], mode: str) -> None:
    params = SteeringParams.from_dict(values)
    assert params is not None
    assert params.mode == mode
    for name, value in values.items():
        assert getattr(params, name) == value


def test_presets() -> None:
    for name, (low, high, threshold) in ADAPTIVE_PRESETS.items():
        params = AdaptVis(preset=name)
        assert (params.alpha_low, params.alpha_high, params.threshold) == (low, high, threshold)
        assert params.alpha is None
    for name, alpha in SCALING_PRESETS.items():
        params = ScalingVis(preset=name)
        assert (params.alpha, params.alpha_low, params.threshold) == (alpha, None, None)
    # DESIGN: the published figures.
    assert AdaptVis(preset="controlled_b").threshold == 0.35
    assert AdaptVis(preset="vg_two").alpha_high == 2.0
    assert SteeringParams(preset="vsr").alpha == 0.5


def test_layer_set() -> None:
    params = ScalingVis(1, layers="0-2,5")
    assert params.layer_set(6) == frozenset({0, 1, 2, 5})
    assert ScalingVis(1).layer_set(6) is None
    with pytest.raises(ValueError, match=r"^adaptvis_layers is '0-2,5', but .* layers 0-4"):
        params.layer_set(5, prefix="adaptvis_")


def test_key_tells_apart_what_steers_differently() -> None:
    different = [
        ScalingVis(0.8),
        ScalingVis(0.80001),
        ScalingVis(0.8, layers="0"),
        ScalingVis(0.8, span="interval"),
        AdaptVis(0.5, 1.5, 0.4),
        AdaptVis(0.5, 1.5, 0.35),
        AdaptVis(0.5, 1.5, 0.4, confidence="margin"),
        AdaptVis(0.5, 1.5, 0.4, confidence_decimals=0),
        Off(),
    ]
    assert len({p.key() for p in different}) == len(different)
    assert Off().key() == Candidates([0.5]).key() == ""


def test_key_ignores_what_does_not() -> None:
    assert ScalingVis(preset="coco").key() == ScalingVis(1.2).key()
    assert AdaptVis(preset="coco").key() == AdaptVis(0.5, 1.2, 0.3).key()
    base = SteeringParams("scaling", 0.8)
    assert base.key() == dataclasses.replace(base, confidence="margin").key()


alphas = st.floats(1e-6, 100)
common = {
    "layers": st.none() | st.sets(st.integers(0, 99), min_size=1).map(list),
    "confidence": st.sampled_from(["max_prob", "margin", "entropy"]),
    "confidence_decimals": st.none() | st.integers(0, 6),
    "span": st.sampled_from(["embeddings", "interval", "image", "video"]),
}
params_strategy = st.one_of(
    st.builds(SteeringParams, mode=st.just("off"), **common),
    st.builds(SteeringParams, mode=st.just("scaling"), alpha=alphas, **common),
    st.builds(
        SteeringParams,
        candidates=st.lists(alphas, min_size=1, max_size=64, unique=True).map(tuple),
        **common,
    ),
    st.builds(
        SteeringParams, mode=st.just("scaling"), preset=st.sampled_from(list(SCALING_PRESETS))
    ),
    st.builds(
        SteeringParams,
        alpha_low=st.none() | alphas,
        alpha_high=alphas,
        threshold=st.none() | st.floats(0, 1),
        preset=st.sampled_from(list(ADAPTIVE_PRESETS)),
        **common,
    ),
)


@given(params_strategy, st.none() | params_strategy)
def test_round_trip(params: SteeringParams, defaults: SteeringParams | None) -> None:
    flat = params.extra_args()
    assert all(type(v) in (str, int, float) for v in flat.values())
    again = SteeringParams.from_flat(flat, defaults=defaults)
    assert again == params
    assert again is not None
    assert again.key() == params.key()
    unprefixed = {k.removeprefix("adaptvis_"): v for k, v in flat.items()}
    assert SteeringParams.from_dict(unprefixed, defaults=defaults) == params


def test_import_is_light() -> None:
    code = (
        "import sys, adaptvis_vllm, adaptvis_vllm.steering.report\n"
        "assert not {'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
