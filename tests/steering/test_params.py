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
from adaptvis_vllm.steering.boxes import held_in, read_positions, write_positions
from adaptvis_vllm.steering.fields import ADAPTIVE_PRESETS, ROWS, RULES, SCALING_PRESETS
from adaptvis_vllm.steering.heads import bitmap

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
    "heads": ["", "a", "3", "3.", ".3", "1-.2", "3.2-1", "1.2.3", 17.3, 17, True, [], [17.3], {},
              "٣.1", "10000.0", "0.10000", "1.*2", "all,1.1", "*.1", "1.1;2.1", "-1.0", "0.-1"],
    "images": ["", "a", "3-1", "-1", "0,,2", 1.0, -1, True, [], [True], "10000", {}, "all,1"],
    "videos": ["", "b", "1-0", -1, False, ["x"], {}],
    "options": ["", "Left", "Left,", "Left,Left", "Left, Left", [], ["a"], ["a", 1], ["a", "a"],
                3, True, {}, ["a", ""], ["a", "\ud800"], ["a", "b" * 201],
                [str(i) for i in range(65)]],
    "boxes": ["", "0,0,1", "0,0,1,1,2", [0, 0, 1], [], 4, True, {}, "0,0,0,1", [5, 0, 3, 9],
              [0, 0, NAN, 1], [0, -1, 1, 1], [0, 0, 1, INF], ["0", 0, 1, 1], [0, 0, True, 1], "0;1",
              [0, 0, 1, 1e7], [0, 0, 1, 1] * 65],
    "rows": ["", "all", "Generated", True, ["last"], 1],
    "rule": ["", "PAI", "add", 1, True, ["pai"]],
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
    base = SCALING if field in ("alpha", "rule") else {"mode": "adaptive", "preset": "coco"}
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
    if value != "" or field not in ("mode", "rule", "rows"):  # which are inferred then
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
    ("heads", "17.3", "17.3"),
    ("heads", "25.*, 20.0-7,17.5,17.3", "17.3,17.5,20.0-7,25.*"),
    ("heads", "2.3,0.*,1.*,2.2", "0-1.*,2.2-3"),
    ("heads", ["0-2.1", "1.1-2"], "0.1,1.1-2,2.1"),
    ("heads", "3.1,3.*", "3.*"),
    ("heads", "all", None),
    ("images", "2,0", "0,2"),
    ("images", 0, "0"),
    ("images", "all", None),
    ("videos", [1, 0], "0-1"),
    ("rule", "pai", "pai"),
    ("rows", "last", "last"),
    ("boxes", "0,0, 10.5,20", (0.0, 0.0, 10.5, 20.0)),
    ("boxes", [0, 0, 1, 2, 3, 4, 5, 6], (0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    ("boxes", "none", None),
    ("rows", "generated", "generated"),
    ("options", "Left, Right", ("Left", "Right")),
    ("options", [" on ", "under, or behind"], ("on", "under, or behind")),
    ("options", "choices", ("choices",)),
    ("options", "none", None),
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
        ({**SCALING, "layers": "0", "heads": "0.1"}, "heads does not go with layers"),
        ({**SCALING, "layers": "all", "heads": "0.1"}, "heads does not go with layers"),
        ({**SCALING, "span": "video", "images": "0"}, "images does not go with span 'video'"),
        ({**SCALING, "span": "image", "videos": "0"}, "videos does not go with span 'image'"),
        ({"candidates": 1, "rows": "generated"}, "rows 'generated' does not go with mode 'cand"),
        ({"mode": "off", "rows": "generated"}, "rows 'generated' does not go with mode 'off'"),
        ({**SCALING, "boxes": "0,0,1,1", "videos": "0"}, "boxes does not go with videos"),
        ({**SCALING, "boxes": "0,0,1,1", "span": "interval"}, "boxes does not go with span 'int"),
        ({**SCALING, "options": "a,b"}, "options does not go with mode 'scaling'"),
        ({"mode": "off", "options": "a,b"}, "options does not go with mode 'off'"),
        ({"preset": "pai", "rule": "multiply"}, "preset 'pai' is a setting of rule 'pai', not of"),
        ({"preset": "pai", "mode": "adaptive"}, "preset 'pai' has no setting for mode 'adaptive'"),
        ({"preset": "coco", "rule": "pai"}, "preset 'coco' is a setting of rule 'multiply', not"),
        ({"alpha": -1, "rule": "add_log"}, "alpha must be a number greater than 0 and at most"),
        ({"alpha": 0}, "alpha must be a number greater than 0 and at most"),
        ({"alpha": -101, "rule": "pai"}, "alpha must be a number from -100 to 100"),
        ({"candidates": [-1, 101], "rule": "pai"}, "candidates must be 1 to 64 .* from -100 to"),
        ({"candidates": [-1, 1]}, "candidates must be 1 to 64 .* greater than 0"),
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


def test_preset_pai() -> None:
    params = SteeringParams(preset="pai")
    assert (params.mode, params.alpha, params.rule) == ("scaling", 0.2, "pai")
    assert (params.layers, params.rows) == ("2-31", "generated")
    for asked in ({}, {"alpha": 0.5}, {"layers": "all"}, {"layers": "1-3"}, {"heads": "1.*"},
                  {"rows": "last"}, {"span": "interval"}):  # fmt: skip
        other = SteeringParams.from_dict({"preset": "pai", **asked}, defaults=AdaptVis(1, 2, 0))
        assert other is not None
        instead = {"layers": None} if "heads" in asked else {}
        for name in ("alpha", "layers", "heads", "rows", "span"):
            wanted = {name: getattr(params, name), **asked, **instead}[name]
            assert getattr(other, name) == (None if wanted == "all" else wanted)
        assert SteeringParams.from_flat(other.extra_args(), defaults=ScalingVis(3)) == other
        assert dataclasses.replace(other) == other
    with pytest.raises(ValueError, match=r"^layers is '2-31', but the model has layers 0-27"):
        params.check_model(28, 28)


def test_layers_of_the_model() -> None:
    params = ScalingVis(1, layers="0-2,5")
    params.check_model(6, 4)
    with pytest.raises(ValueError, match=r"^adaptvis_layers is '0-2,5', but .* layers 0-4"):
        params.check_model(5, 4, prefix="adaptvis_")


def test_alphas_of_pai_may_be_negative_or_nothing() -> None:
    assert ScalingVis(0, rule="pai").alpha == 0
    assert Candidates([0, -1.5], rule="pai").candidates == (0, -1.5)
    adaptive = AdaptVis(-0.5, 0.5, 0.4, rule="pai")
    assert SteeringParams.from_flat(adaptive.extra_args()) == adaptive


def test_head_masks_and_what_the_model_has() -> None:
    params = ScalingVis(1, heads="0.1,2.*,3.0-2")
    assert params.head_masks(4) == {0: 2, 2: -1, 3: 7}
    assert ScalingVis(1, layers="0,2").head_masks(4) == {0: -1, 2: -1}
    assert ScalingVis(1).head_masks(2) == {0: -1, 1: -1}
    params.check_model(4, 3)
    with pytest.raises(ValueError, match=r"^adaptvis_heads names layer 3, but .* layers 0-2$"):
        params.check_model(3, 8, prefix="adaptvis_")
    with pytest.raises(ValueError, match=r"^heads names head 2 of layer 3, .* query heads 0-1$"):
        params.check_model(4, 2)


@pytest.mark.parametrize(("mask", "words"), [
    (-1, [(-1,), (-1, 0xFF), (0xFF,)]),
    (1 << 31 | 1, [(-(2**31) + 1,), (-(2**31) + 1, 0), (0,)]),
    (1 << 33, [(0,), (0, 2), (2,)]),
])  # fmt: skip
def test_a_rank_takes_its_own_heads(mask: int, words: list[tuple[int, ...]]) -> None:
    assert [bitmap(mask, 0, 32), bitmap(mask, 0, 40), bitmap(mask, 32, 8)] == words


def test_what_the_prompt_has() -> None:
    params = ScalingVis(1, images="0,2")
    params.check_prompt({"image": 3})
    params.check_prompt({"video": 1})  # nothing to steer, and reported so
    with pytest.raises(ValueError, match=r"^images is '0,2', but the prompt has images 0-1$"):
        params.check_prompt({"image": 2, "video": 9})


def test_boxes_are_of_one_picture() -> None:
    params = ScalingVis(1, boxes=(0, 0, 9, 9))
    assert (params.picture(1), params.kind, params.pictures["span"]) == (0, "image", "image")
    assert ScalingVis(1, boxes=(0, 0, 9, 9), images="2").picture(3) == 2
    for several in (params, ScalingVis(1, boxes=(0, 0, 9, 9), images="0,1")):
        with pytest.raises(ValueError, match=r"^boxes are of one picture, .* has 3: images must"):
            several.check_prompt({"image": 3})


def test_what_lies_in_a_box() -> None:
    areas = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [np.nan] * 4, [0, 10, 10, 20]])
    assert held_in(areas, (0, 0, 10, 10)).tolist() == [True, False, False, False]
    assert held_in(areas, (5, 5, 14, 15)).tolist() == [True, False, False, True]
    assert held_in(areas, (0, 0, 5, 5, 15, 0, 99, 5)).tolist() == [True, True, False, False]
    assert held_in(areas, (0, 0, 20, 20)).tolist() == [True] * 4
    assert not held_in(areas, (30, 30, 40, 40)).any()


@given(st.sets(st.integers(0, 70), min_size=1).map(sorted))
def test_positions_travel_as_text(positions: list[int]) -> None:
    assert read_positions(write_positions(np.array(positions))).tolist() == positions


def test_key_tells_apart_what_steers_differently() -> None:
    different = [
        ScalingVis(0.8),
        ScalingVis(0.80001),
        ScalingVis(0.8, layers="0"),
        ScalingVis(0.8, span="interval"),
        ScalingVis(0.8, rule="add_log"),
        ScalingVis(0.8, rule="pai"),
        ScalingVis(0.8, rows="generated"),
        ScalingVis(0.8, boxes=(0, 0, 1, 1)),
        ScalingVis(0.8, boxes=(0, 0, 1, 2)),
        ScalingVis(0.8, heads="0.1"),
        ScalingVis(0.8, heads="0.*"),
        ScalingVis(0.8, images="0"),
        ScalingVis(0.8, videos="0"),
        ScalingVis(0.8, images="0", videos="0"),
        AdaptVis(0.5, 1.5, 0.4),
        AdaptVis(0.5, 1.5, 0.35),
        AdaptVis(0.5, 1.5, 0.4, confidence="margin"),
        AdaptVis(0.5, 1.5, 0.4, confidence_decimals=0),
        AdaptVis(0.5, 1.5, 0.4, options=("a", "b")),
        AdaptVis(0.5, 1.5, 0.4, options=("b", "a")),
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
    "confidence": st.sampled_from(["max_prob", "margin", "entropy"]),
    "confidence_decimals": st.none() | st.integers(0, 6),
}
where = st.one_of(
    st.builds(dict, layers=st.none() | st.sets(st.integers(0, 99), min_size=1).map(list)),
    st.builds(
        dict,
        heads=st.lists(
            st.tuples(st.integers(0, 40), st.integers(0, 99)).map("{0[0]}.{0[1]}".format)
            | st.integers(0, 40).map("{}.*".format),
            min_size=1,
        ),
    ),
)
pictures = st.one_of(
    st.builds(dict, span=st.sampled_from(["embeddings", "interval", "image", "video"])),
    st.builds(
        dict,
        span=st.sampled_from(["embeddings", "interval"]),
        images=st.none() | st.sets(st.integers(0, 9), min_size=1).map(list),
        boxes=st.none(),
        videos=st.none() | st.sets(st.integers(0, 9), min_size=1).map(list),
    ),
    st.builds(
        lambda x, y, images: {"boxes": (x, y, x + 1, y + 2.5), "images": images},
        st.floats(0, 999),
        st.floats(0, 999),
        st.none() | st.integers(0, 9),
    ),
)


def built(**fields: Any) -> st.SearchStrategy[SteeringParams]:
    """With a choice of layers or heads, of pictures, and the common fields."""
    return st.builds(
        lambda here, there, **others: SteeringParams(**here, **there, **others),
        where,
        pictures,
        **common,
        **fields,
    )


params_strategy = st.one_of(
    built(mode=st.just("off")),
    built(
        mode=st.just("scaling"),
        alpha=alphas,
        rule=st.sampled_from(RULES),
        rows=st.sampled_from(ROWS),
    ),
    built(
        candidates=st.lists(alphas, min_size=1, max_size=64, unique=True).map(tuple),
        rule=st.sampled_from(RULES),
    ),
    st.builds(
        SteeringParams, mode=st.just("scaling"), preset=st.sampled_from(list(SCALING_PRESETS))
    ),
    built(
        alpha_low=st.none() | alphas,
        alpha_high=alphas,
        threshold=st.none() | st.floats(0, 1),
        options=st.none()
        | st.lists(
            st.text("ab, ;", min_size=1).map(str.strip).filter(bool),
            min_size=2,
            max_size=5,
            unique=True,
        ).map(tuple),
        preset=st.sampled_from(list(ADAPTIVE_PRESETS)),
    ),
)


@given(params_strategy, st.none() | params_strategy)
def test_round_trip(params: SteeringParams, defaults: SteeringParams | None) -> None:
    flat = params.extra_args()
    single = [x for v in flat.values() for x in (v if isinstance(v, list) else [v])]
    assert all(type(v) in (str, int, float) for v in single)
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
