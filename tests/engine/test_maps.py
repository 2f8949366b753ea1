"""Attention maps as an engine gives them: what they cost, who gets them, and how far they go.

That their weights are right: tests of kernels, and against transformers in tests/families.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.images import make_image
from engine.test_lifecycle import TEXT, drive, preempt_all
from support.engine import (
    counted_steps,
    generate,
    prompt,
    runner,
    sampling,
    scheduler,
    tokens,
)
from vllm import SamplingParams

from adaptvis_vllm import AdaptVis, Off, ScalingVis, SteeringParams
from adaptvis_vllm.engine.attention import cpu
from adaptvis_vllm.geometry import locate
from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.offline.runner import RowRunner

LAYERS, HEADS, POSITIONS = 4, 4, 16  # of the model and of a picture
WAYS: dict[str, SteeringParams] = {
    "off": Off(),
    "scaling": ScalingVis(2.0),
    "low": AdaptVis(0.5, 2.0, 1.0),
    "high": AdaptVis(0.5, 2.0, 0.0),
    "some layers": ScalingVis(0.3, layers="1-2"),
}


@contextmanager
def weighed() -> Iterator[list[int]]:
    """Rows of each launch that weighs some."""
    seen: list[int] = []
    original = cpu.weigh_rows
    patch = pytest.MonkeyPatch()
    patch.setattr(
        cpu,
        "weigh_rows",
        lambda *args, **more: (seen.append(len(args[4])), original(*args, **more)),
    )
    yield seen
    patch.undo()


def asked(way: str, maps: str = "all", count: int = 0) -> SteeringParams:
    return replace(WAYS[way], maps=maps, maps_tokens=count)


def total(weights: Any, rest: Any) -> Any:
    return weights.astype(np.float64).sum(-1) + rest.astype(np.float64).sum(-1)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_request_gets(engine: Any, way: str) -> None:
    """The same answer as without maps, and weights that sum to 1."""
    plain, mapped, off = generate(
        engine,
        [prompt(3)] * 3,
        [sampling(WAYS[way]), sampling(asked(way)), sampling(asked("off"))],
    )
    assert tokens(mapped) == tokens(plain)
    assert mapped.adaptvis == pytest.approx(plain.adaptvis)
    assert plain.adaptvis_maps is None
    maps, base = mapped.adaptvis_maps, off.adaptvis_maps
    assert maps.layers.tolist() == list(range(LAYERS))
    assert maps.before.shape == (LAYERS, HEADS, POSITIONS)
    assert maps.sizes.tolist() == [list(make_image(3).size)]
    assert not maps.unknown
    assert not maps.image.any()
    token = engine.get_tokenizer().convert_tokens_to_ids("<image>")
    assert {mapped.prompt_token_ids[p] for p in maps.positions} == {token}
    assert np.allclose(total(maps.before, maps.rest_before), 1, atol=2e-3)
    assert np.allclose(maps.before, base.before, atol=1e-3)
    assert base.after is None
    if way == "off":
        assert maps.after is None
        return
    assert np.allclose(total(maps.after, maps.rest_after), 1, atol=2e-3)
    share, steered = maps.share("before"), maps.share("after")
    first = 1 if way == "some layers" else 0
    assert np.allclose(share[:first], steered[:first], atol=1e-3)
    assert np.abs(share[first] - steered[first]).max() > 0.01


def test_layers_and_generated_tokens(engine: Any) -> None:
    """A generated token's row is captured as it is computed, which the last one's never is."""
    ways = [asked("high", "1,3", 3), asked("off", "0", 5), asked("low", "2", 2)]
    params = [sampling(way, max_tokens=4, ignore_eos=True) for way in ways]
    some, off, low = (o.adaptvis_maps for o in generate(engine, [prompt(5)] * 3, params))
    assert some.layers.tolist() == [1, 3]
    assert some.tokens.shape == (3, 2, HEADS, POSITIONS)
    assert some.rest_tokens.shape == (3, 2, HEADS, 2)
    assert np.allclose(total(some.tokens, some.rest_tokens), 1, atol=2e-3)
    assert off.tokens.shape == (3, 1, HEADS, POSITIONS)
    assert low.tokens.shape == (2, 1, HEADS, POSITIONS)
    (alone,) = generate(engine, [prompt(5)], sampling(ways[0], max_tokens=4, ignore_eos=True))
    assert np.allclose(alone.adaptvis_maps.tokens, some.tokens, atol=1e-3)


def test_counted(engine: Any) -> None:
    """Who captures nothing launches and copies what it did; capturing takes no token and no step,
    and a launch a captured layer."""
    items = [prompt(i) for i in range(6)]
    steer = runner(engine).adaptvis
    held: dict[bool, Any] = {}
    for captures in (False, True):
        ways = [asked("high") if captures and i % 2 else WAYS["high"] for i in range(6)]
        copies: list[int] = []
        to_host = steer._to_host
        steer._to_host = lambda t, kept=copies, copy=to_host: (kept.append(t.numel()), copy(t))[1]
        assert engine.reset_prefix_cache()
        try:
            with counted_steps(engine) as steps, weighed() as rows:
                outputs = generate(engine, items, [sampling(way) for way in ways])
        finally:
            del steer._to_host
        counts = sorted(tuple(step.values()) for step in steps)
        held[captures] = counts, rows, copies, [tokens(output) for output in outputs]
    assert held[True][0] == held[False][0]
    assert held[True][3] == held[False][3]
    assert not held[False][1]
    ends = len(held[False][2])
    assert len(held[True][2]) == 2 * ends
    assert len(held[True][1]) == LAYERS * ends
    assert sum(held[True][1]) == LAYERS * 3 * 3  # row n and two side rows of three requests


def test_several_choices(engine: Any) -> None:
    """n > 1: every choice is steered for itself, and one's maps come with the output."""
    params = sampling(asked("high", "all", 2), n=3, temperature=1.0, seed=7, max_tokens=3)
    (output,) = generate(engine, [prompt(8)], params)
    assert output.adaptvis_maps.tokens.shape[1:] == (LAYERS, HEADS, POSITIONS)
    assert output.adaptvis["steered"]


def test_two_pictures_and_none(engine: Any) -> None:
    pictures = [make_image(1), make_image(2)]
    text = "USER: <image>\nand <image>\nWhich? ASSISTANT:"
    two = {"prompt": text, "multi_modal_data": {"image": pictures}}
    both, none = generate(engine, [two, prompt(None)], sampling(asked("scaling")))
    assert both.adaptvis_maps.image.tolist() == [0] * POSITIONS + [1] * POSITIONS
    assert both.adaptvis_maps.sizes.tolist() == [list(p.size) for p in pictures]
    assert none.adaptvis_maps is None
    assert none.adaptvis["reason"] == "no image"
    painted = both.adaptvis_maps.overlay(pictures[1], 2, image=1, which="difference")
    assert painted.size == pictures[1].size
    with pytest.raises(ValueError, match="layer 9 was not captured"):
        both.adaptvis_maps.overlay(pictures[1], 9)


def test_too_large_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine's limit, before anything is computed."""
    admission = engine.llm_engine.input_processor.adaptvis
    size = 2 * LAYERS * HEADS * (POSITIONS + 2) * 2
    monkeypatch.setattr(admission, "max_map_bytes", size)
    assert generate(engine, [prompt(1)], sampling(asked("low")))[0].adaptvis_maps is not None
    monkeypatch.setattr(admission, "max_map_bytes", size - 1)
    with pytest.raises(ValueError, match=rf"^adaptvis_maps of 4 layers.* {size} bytes") as error:
        generate(engine, [prompt(1)], sampling(asked("low")))
    assert "--max-map-bytes" in str(error.value)
    assert generate(engine, [prompt(1)], sampling(asked("low", "0-2")))[0].adaptvis_maps is not None


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"adaptvis_maps": "0-4"}, "adaptvis_maps is '0-4', but the model has layers 0-3"),
        ({"adaptvis_maps": "x"}, "adaptvis_maps must be layer numbers"),
        ({"adaptvis_maps_tokens": 2}, "adaptvis_maps_tokens needs adaptvis_maps"),
        ({"adaptvis_maps": "0", "adaptvis_maps_tokens": -1}, "adaptvis_maps_tokens must be"),
    ],
)
def test_bad_values(engine: Any, xargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        generate(engine, [prompt(1)], SamplingParams(extra_args=xargs))


def test_drafts_are_no_generated_tokens(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    admission = engine.llm_engine.input_processor.adaptvis
    monkeypatch.setattr(admission, "config", SimpleNamespace(speculative_config="ngram"))
    with pytest.raises(ValueError, match=r"^adaptvis_maps_tokens must be 0 with speculative"):
        admission.resolve(asked("low", "all", 2).extra_args())
    assert admission.resolve(asked("low").extra_args()) is not None


def test_geometry_that_is_not_known(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights come all the same, with a sentence."""
    monkeypatch.setattr(locate, "FAMILIES", {})
    (output,) = generate(engine, [prompt(1)], sampling(asked("off")))
    maps = output.adaptvis_maps
    assert "not known of LlavaForConditionalGeneration" in maps.unknown
    assert np.isnan(maps.boxes).all()
    with pytest.raises(ValueError, match="not known"):
        maps.overlay(make_image(1))


def test_rows_of_a_file(engine: Any, tmp_path: Path) -> None:
    """A file for each row that asks; a row whose maps would be lost is an error row."""
    rows = [
        {"id": "a/b", "image": "p.png", "question": "?", "adaptvis": {"alpha": 2, "maps": "all"}},
        {"id": 2, "image": "p.png", "question": "?", "adaptvis": {"alpha": 2}},
        {"id": 3, "image": "p.png", "question": "?", "adaptvis": {"maps": "7"}},
    ]
    make_image(4).save(tmp_path / "p.png")
    folder = MapFolder(tmp_path / "maps")
    found = list(RowRunner(engine, tmp_path, maps=folder).run(rows))
    assert [row["error"] for row in found[:2]] == [None, None]
    assert "maps is '7', but the model has layers 0-3" in found[2]["error"]
    (file,) = folder.folder.iterdir()
    assert file == folder.file("a/b")
    assert Maps.load(file).after.shape == (LAYERS, HEADS, POSITIONS)
    lost = list(RowRunner(engine, tmp_path).run(rows[:2]))
    assert "--maps FOLDER" in lost[0]["error"]
    assert lost[1]["error"] is None
    assert json.dumps(found[0]["adaptvis"])


def test_without_a_compiler(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights in torch."""
    (want,) = generate(engine, [prompt(6)], sampling(asked("low", "all", 1)))
    monkeypatch.setattr(cpu, "compiled", lambda: False)
    assert engine.reset_prefix_cache()
    (found,) = generate(engine, [prompt(6)], sampling(asked("low", "all", 1)))
    for name in ("before", "after", "rest_after", "tokens"):
        a, b = getattr(want.adaptvis_maps, name), getattr(found.adaptvis_maps, name)
        assert torch.allclose(torch.tensor(a).float(), torch.tensor(b).float(), atol=1e-3)


@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
def test_chunks_and_preemption(engine: Any, cold: bool) -> None:
    """Prompts in chunks, preempted every third step, computed again from cached blocks or from
    nothing: the maps are those of a request alone."""
    items = [prompt(i, TEXT) for i in range(4)]
    ways = [asked("high", "all", 6), asked("scaling", "2"), asked("off", "all", 9), asked("low")]
    params = [sampling(way, max_tokens=8, ignore_eos=True) for way in ways]
    want = [generate(engine, [item], p)[0] for item, p in zip(items, params, strict=True)]
    assert engine.reset_prefix_cache()
    sched = scheduler(engine)
    budget, sched.max_num_scheduled_tokens = sched.max_num_scheduled_tokens, 100
    try:
        found = drive(engine, items, params, lambda n, _: n % 3 == 2 and preempt_all(engine, cold))
    finally:
        sched.max_num_scheduled_tokens = budget
    for number, alone in enumerate(want):
        assert tokens(found[number]) == tokens(alone)
        for name in ("before", "after", "tokens", "rest_tokens"):
            a, b = (getattr(o.adaptvis_maps, name) for o in (alone, found[number]))
            assert (a is None) == (b is None)
            assert a is None or np.allclose(a, b, atol=1e-3)
