"""`adaptvis look` on a real (tiny) model, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints.images import make_image
from checkpoints.text import make_text
from PIL import Image
from support.browser import Tab, needs_chromium
from support.commands import here
from support.engine import generate, prompt, sampling
from support.http_server import ENGINE, QUESTION

from adaptvis_vllm import AdaptVis, Off, ScalingVis, cli
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.offline.look import PRESET, answered, chosen

PICTURE = 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    make_image(PICTURE).save(path)
    return path


@pytest.fixture(scope="module")
def written(model: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the command was run."""
    folder = tmp_path_factory.mktemp("look")
    command = (
        *("look", file, QUESTION, "--model", model, "--alpha", "3", "--max-tokens", "8", *ENGINE),
        *("--png", "over.png", "--show", "difference", "--layer", "2", "--head", "1"),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        done = here(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("look.html\nover.png\n")
    return folder


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_what_an_engine_says(written: Path, engine: Any) -> None:
    found = data_of(written / "look.html")
    maps = Maps.from_bytes(base64.b64decode(found["maps"]))
    base, steered = generate(
        engine, [prompt(PICTURE, QUESTION)] * 2, [sampling(Off()), sampling(ScalingVis(3.0))]
    )
    assert found["base"]["text"] == base.outputs[0].text
    assert found["steered"]["text"] == steered.outputs[0].text
    assert found["steered"]["report"]["alpha"] == 3.0
    assert 0 < found["base"]["confidence"] < 1
    assert maps.before.shape == maps.after.shape == (4, 4, 16)
    assert (maps.before != maps.after).any()
    assert maps.sizes.tolist() == [list(make_image(PICTURE).size)]
    assert found["facts"]["steering"] == "ScalingVis: alpha 3"
    over = maps.overlay(make_image(PICTURE).convert("RGB"), 2, which="difference", head=1)
    assert (np.asarray(Image.open(written / "over.png")) == np.asarray(over)).all()


@needs_chromium
def test_the_page_opens(written: Path, tmp_path: Path) -> None:
    with Tab(tmp_path) as tab:
        tab.open((written / "look.html").as_uri())
        tab.until("!document.querySelector('#result').hidden")
        assert tab.value("[maps.L, maps.H, maps.P].join()") == "4,4,16"
        tab.screenshot(Path(__file__).parents[2] / "out/tests/look_command.png")
        assert not tab.errors


@pytest.mark.parametrize("steering", [AdaptVis(0.5, 2.0, 0.2, layers="1-2"), Off()])
def test_answers(engine: Any, steering: Any) -> None:
    """Adaptive steering and none. `maps` are asked for with the steering alone."""
    fields = {k.removeprefix("adaptvis_"): v for k, v in steering.extra_args().items()}
    row = {"question": QUESTION, "images": [make_image(PICTURE)], "max_tokens": 8}
    look = answered(engine, row, chosen({**fields, "maps": "0,3"}, None))
    assert look.maps is not None
    assert look.maps.layers.tolist() == [0, 3]
    assert (look.maps.after is None) == (steering == Off())
    assert (look.steered is None) == (steering == Off())
    if look.steered is not None:
        confidence = look.steered.report["confidence"]
        assert confidence == pytest.approx(look.base.confidence, abs=1e-4)


def test_a_row_that_is_refused(engine: Any) -> None:
    row = {"question": QUESTION, "images": [make_image(PICTURE)]}
    with pytest.raises(ValueError, match="maps"):
        answered(engine, row, chosen({"alpha": 2, "maps": "9"}, None))


def test_what_is_shown() -> None:
    """Options win, then the engine's defaults, then the paper's setting."""
    assert chosen({}, None).preset == PRESET
    assert chosen({}, Off()).preset == PRESET
    assert chosen({}, ScalingVis(2.0)).alpha == 2.0
    assert chosen({"alpha": 3}, ScalingVis(2.0)).alpha == 3.0
    assert chosen({"layers": "1"}, ScalingVis(2.0)).layers == "1"
    assert chosen({"layers": "1"}, None).preset == PRESET
    assert not chosen({"mode": "off"}, ScalingVis(2.0)).steers
    assert chosen({"maps": "1-2"}, None).maps == "1-2"
    for wrong, sentence in (
        ({"candidates": "0.5"}, "candidates do not steer"),
        ({"maps": "none"}, "--map-layers"),
        ({"threshold": 0.4}, "alpha_low is missing"),
    ):
        with pytest.raises(ValueError, match=sentence):
            chosen(wrong, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["Where?"], "a picture is needed"),
        (["lost.png", "Where?"], "PICTURE: no such file 'lost.png'"),
        (["words.png", "Where?"], "'words.png' is no readable image"),
        (["data:image/png;base64,AAAA", "Where?"], "is no readable image"),
        (["scene.png", "words.png", "Where?"], "'words.png' is no readable image"),
        (["Where?", "--video", "words.png"], "--video: 'words.png' is no readable video"),
        (["scene.png", "Where?", "--alpha", "0"], "alpha must be a number greater than 0"),
        (["scene.png", "Where?", "--map-layers", "many"], "maps must be layer numbers"),
        (["scene.png", "Where?", "-o", "scene.png"], "the output scene.png is the input"),
        (["scene.png", "Where?", "-o", "no/look.html"], "--output: no such folder no"),
        (["scene.png", "Where?", "--png", "no/a.png"], "--png: no such folder no"),
        (["scene.png", "Where?", "--png", "."], "--png: . is a folder"),
        (["scene.png", "Where?", "--model", "text"], "the model text takes no images"),
        (["scene.png", "Where?"], "--model is needed"),
    ],
)
def test_mistakes_are_one_sentence(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before an engine is started."""
    monkeypatch.chdir(tmp_path)
    make_image(PICTURE).save("scene.png")
    Path("words.png").write_text("words")
    if "text" in options:
        make_text(Path("text"))
    elif "--model" not in options and sentence != "--model is needed":
        options = [*options, "--model", "no/such/model"]
    assert cli.main(["look", *options]) == 1
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("adaptvis look: ")
    assert sentence in printed
    assert not Path("look.html").exists()
