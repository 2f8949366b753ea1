"""The page of `adaptvis look`, made without a model: every control used in headless Chromium.

Screenshots: out/tests/look_*.png.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import Tab, needs_chromium
from support.made_maps import SINK, made_maps, picture
from support.waiting import HANG_S

from adaptvis_vllm.look.page import Answer, Look, page, shown
from adaptvis_vllm.maps.maps import Maps
from adaptvis_vllm.steering.report import Report

ARTEFACTS = Path(__file__).parents[2] / "out/tests"
OFF = Report("off", reason="mode off").as_dict()
ADAPTIVE = Report("adaptive", 0.31, 0.5, True).as_dict()
HOSTILE = (
    "</script><script>document.title='caught'</script><img src=x onerror=document.title='caught'>"
)


def look(maps: Maps | None = None, **more: Any) -> Look:
    given: dict[str, Any] = {
        "question": "Is the disc left or right of the square?",
        "pictures": [shown([picture()], "scene.png")],
        "base": Answer("Right", 0.31, OFF),
        "steered": Answer("Left", 0.62, ADAPTIVE),
        "maps": made_maps() if maps is None else maps,
        "facts": {"model": "none, made"},
    }
    return Look(**(given | more))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with Tab(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def opened(tab: Tab, folder: Path, found: Look) -> None:
    file = folder / "look.html"
    file.write_text(page(found), encoding="utf-8")
    tab.requests.clear()
    tab.errors.clear()
    tab.open(file.as_uri())
    tab.until("!document.querySelector('#result').hidden")


def pixels(tab: Tab, number: int = 0) -> Any:
    """[height, width, 4] of a canvas above the gallery."""
    uri = tab.value(f"document.querySelectorAll('#pictures canvas')[{number}].toDataURL()")
    import io

    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)


def hottest(tab: Tab, number: int = 0) -> tuple[float, float]:
    """Where a map is the most yellow, as parts of the width and the height."""
    image = pixels(tab, number)
    warmth = image[..., 0] + image[..., 1] - 2 * image[..., 2]
    y, x = np.argwhere(warmth == warmth.max()).mean(0)
    return x / image.shape[1], y / image.shape[0]


def pressed(tab: Tab, selector: str) -> bool:
    return tab.value(f"document.querySelector('{selector}').ariaPressed") == "true"


@needs_chromium
def test_what_it_shows(tab: Tab, tmp_path: Path) -> None:
    """Answers, maps where they were put, shares and sinks; nothing is asked of any host."""
    maps = made_maps()
    opened(tab, tmp_path, look(maps))
    assert "none, made" in tab.text("#facts")
    answers = tab.text("#answers")
    for words in (
        "Right",
        "31.0%",
        "Left",
        "62.0%",
        "0.5",
        "adaptive",
        "Other words than unsteered",
    ):
        assert words in answers
    assert tab.value("document.querySelectorAll('#pictures canvas').length") == 3
    assert hottest(tab, 0)[0] == pytest.approx(0.22, abs=0.05)  # the disc
    assert hottest(tab, 1)[0] == pytest.approx(0.76, abs=0.05)  # the square
    titles = tab.value("[...document.querySelectorAll('#pictures h3')].map(h => h.innerText)")
    for which, title in zip(("before", "after"), titles, strict=False):
        assert f"{100 * maps.share(which).mean():.1f}%" in title
    assert tab.value("document.querySelectorAll('#heads button').length") == 8
    assert tab.value("document.querySelectorAll('#shares svg').length") == 3
    assert f": {maps.positions[SINK]}. Together" in tab.text("#sinks-said")
    assert "Without an area" in tab.text("#areas-said")
    first = tab.value("document.querySelector('#positions-table tbody tr').innerText")
    assert re.search(r"^8\b.*sink", first, re.DOTALL), first
    tab.screenshot(ARTEFACTS / "look_light.png")
    tab.screenshot(ARTEFACTS / "look_dark.png", dark=True)
    tab.screenshot(ARTEFACTS / "look_narrow.png", width=480)
    assert not tab.errors
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []


@needs_chromium
def test_layers_and_heads(tab: Tab, tmp_path: Path) -> None:
    """The slider by its keys, the gallery by mouse and key, the means, the plots."""
    maps = made_maps(layers=(3, 5, 7, 9))
    opened(tab, tmp_path, look(maps))
    assert tab.text("#layer-name") == "mean of all"
    tab.value("document.querySelector('#layer').focus()")
    tab.press("ArrowRight", 2)
    assert tab.text("#layer-name") == "7"
    assert not pressed(tab, "#layer-mean")
    tab.click("#heads button:nth-child(6)")
    assert tab.text("#head-name") == "head 5"
    assert pressed(tab, "#heads button:nth-child(6)")
    share = float(maps.share("after")[2, 5])
    assert f"{100 * share:.1f}%" in tab.text("#pictures figure:nth-child(2) h3")
    assert "Head 5" in tab.text("#shares-note")
    tab.click("#head-mean")
    assert tab.text("#head-name") == "mean of all"
    tab.value("document.querySelector('#heads button').focus()")
    tab.press("Enter")
    assert tab.text("#head-name") == "head 0"
    tab.click("#layer-mean")
    assert tab.text("#layer-name") == "mean of all"
    tab.click("#shares svg", 0.97)
    assert tab.text("#layer-name") == "9"
    tab.click("[aria-labelledby=shares-title] summary")
    table = tab.text("#shares-table")
    assert f"{100 * float(maps.share('before')[3, 0]):.1f}%" in table
    assert f"{100 * float(maps.rest_before[3, 0, 0]):.1f}%" in table
    for order, first in (("share", "head 7"), ("number", "head 0"), ("change", "head 7")):
        tab.choose("#order", order)
        assert tab.text("#heads button").startswith(first)
    assert not tab.errors


@needs_chromium
def test_views_of_the_map(tab: Tab, tmp_path: Path) -> None:
    """Before, after, difference, sinks, opacity, grey, a common scale, single positions."""
    opened(tab, tmp_path, look())
    tab.choose("#layer", "7")
    for which in ("before", "after", "difference"):
        tab.click(f"#which input[value={which}]")
        assert tab.value("document.querySelectorAll('#pictures canvas').length") == 1
        assert tab.text("#pictures h3").lower().startswith(which)
        tab.screenshot(ARTEFACTS / f"look_{which}.png")
    blue_left, red_right = pixels(tab)[370, 200], pixels(tab)[330, 690]
    assert blue_left[2] > blue_left[0]
    assert red_right[0] > red_right[2]
    tab.click("#which input[value=after]")
    with_out = pixels(tab)
    assert hottest(tab)[0] == pytest.approx(0.76, abs=0.05)
    tab.click("#sinks")  # the sink then rules the scale
    x, y = hottest(tab)
    assert (x, y) == (pytest.approx((SINK + 0.5) / 16, abs=0.03), pytest.approx(1 / 24, abs=0.03))
    tab.click("#sinks")
    assert (pixels(tab) == with_out).all()
    tab.click("#grey")
    disc = pixels(tab)[300, 200]
    assert disc[0] > disc[1] + 40  # red
    tab.click("#grey")
    tab.value("document.querySelector('#strength').focus()")
    tab.press("Home")
    faint = pixels(tab)[300, 690]
    assert max(faint[:3]) - min(faint[:3]) <= 2  # nothing but the grey picture
    small = "document.querySelector('#heads button:nth-child(2) canvas').toDataURL()"
    own = tab.value(small)
    tab.click("#same")
    assert tab.value(small) != own
    tab.click("#pictures canvas", 0.51 / 16, 0.5 / 12, press=False)
    assert "Position 5 of the prompt, x 0 to 40, y 0 to 35" in tab.text("#readout")
    tab.value("document.querySelector('#pictures canvas').focus()")
    tab.press("ArrowRight", SINK)
    assert "Position 8 " in tab.text("#readout")
    assert "It is a sink" in tab.text("#readout")
    tab.press("ArrowLeft")
    assert "Position 7 " in tab.text("#readout")
    tab.click("#positions-table tbody tr:nth-child(2) button")
    chosen = tab.text("#positions-table tbody tr:nth-child(2) button")
    assert f"Position {chosen} " in tab.text("#readout")
    assert not tab.errors


@needs_chromium
def test_several_pictures(tab: Tab, tmp_path: Path) -> None:
    sizes = ((640, 420), (300, 500))
    found = look(
        made_maps(sizes), pictures=[shown([picture(size)], str(size[0])) for size in sizes]
    )
    opened(tab, tmp_path, found)
    wide = pixels(tab).shape
    tab.choose("#picture", "1")
    tall = pixels(tab).shape
    assert wide[0] < wide[1]
    assert tall[0] > tall[1]
    assert hottest(tab, 1)[0] == pytest.approx(0.76, abs=0.06)
    tab.screenshot(ARTEFACTS / "look_second_picture.png")
    where = tab.text("#positions-table")
    assert "300, x" in where
    assert "640, x" in where
    assert not tab.errors


@needs_chromium
def test_frames_of_a_video(tab: Tab, tmp_path: Path) -> None:
    images = [Image.new("RGB", (640, 420), (40 * n, 40 * n, 40 * n)) for n in range(4)]
    opened(tab, tmp_path, look(made_maps(frames=4), pictures=[shown(images, "clip")]))
    assert pressed(tab, "#frame-all")
    tab.click("#strength", 0.01)
    dark = pixels(tab)[200, 450, 0]
    tab.value("document.querySelector('#frame').focus()")
    tab.press("ArrowRight", 2)
    assert tab.text("#frame-name") == "2"
    assert pixels(tab)[200, 450, 0] > dark + 60
    tab.click("#frame-all")
    assert tab.text("#frame-name") == "all"
    assert not tab.errors


@needs_chromium
def test_rows_of_generated_tokens(tab: Tab, tmp_path: Path) -> None:
    opened(tab, tmp_path, look(made_maps(tokens=2)))
    tab.choose("#row", "1")
    assert tab.text("#pictures h3").startswith("Generated token 2: ")
    assert hottest(tab)[0] == pytest.approx(0.5, abs=0.05)
    assert not tab.visible("#which")
    tab.choose("#row", "")
    assert tab.value("document.querySelectorAll('#pictures canvas').length") == 3
    assert not tab.errors


@needs_chromium
def test_without_geometry(tab: Tab, tmp_path: Path) -> None:
    """Shares, heads and answers stand; the page says why nothing is laid over the picture."""
    opened(tab, tmp_path, look(made_maps(unknown="where image positions lie is not known of X")))
    assert "cannot be laid over the picture: where image positions lie" in tab.text("#unknown")
    assert tab.value("document.querySelectorAll('#pictures canvas').length") == 1
    assert tab.visible("#shares svg")
    assert not tab.visible("#heads canvas")
    assert "%" in tab.text("#heads button")
    tab.screenshot(ARTEFACTS / "look_unknown.png")
    assert not tab.errors


@needs_chromium
def test_without_steering_or_maps(tab: Tab, tmp_path: Path) -> None:
    opened(tab, tmp_path, look(made_maps(steered=False), steered=None))
    assert not tab.visible("#which")
    assert tab.value("document.querySelectorAll('#pictures canvas').length") == 1
    assert "after" not in tab.text("#shares-note")
    opened(tab, tmp_path, replace(look(), maps=None, missing="There is no image"))
    assert "There is no image" in tab.text("#unknown")
    assert not tab.visible("#heads-section")
    assert not tab.visible("#shares")
    assert not tab.errors


@needs_chromium
def test_texts_stay_texts(tab: Tab, tmp_path: Path) -> None:
    answer = Answer(HOSTILE, 0.5, ADAPTIVE)
    found = look(
        question=HOSTILE,
        base=answer,
        steered=answer,
        facts={HOSTILE: HOSTILE},
        pictures=[replace(shown([picture()]), name=HOSTILE)],
    )
    opened(tab, tmp_path, found)
    assert HOSTILE in tab.text("#answers")
    assert HOSTILE in tab.text("#asked")
    assert tab.value("document.title") == "Where it looks"
    assert not tab.errors


def test_the_page_is_one_file() -> None:
    text = page(look(question="__DATA__ /* scripts */"))
    assert "src=" not in re.sub(r"<script[^>]*json.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?://", text)
    assert text.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert data is not None
    read = json.loads(data[1])
    assert read["question"] == "__DATA__ /* scripts */"
    maps = Maps.from_bytes(base64.b64decode(read["maps"]))
    assert (maps.before == made_maps().before).all()
    assert ">null<" in page()


def test_the_page_is_light() -> None:
    """It loads no vLLM and no torch, and its files are in the package."""
    program = (
        "import sys; from adaptvis_vllm.look.page import page; print(len(page()) > 20_000,"
        "[name for name in ('torch', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.stdout == "True []\n", done.stdout + done.stderr


def test_a_large_picture_is_made_smaller() -> None:
    """The boxes count in pixels of the picture as it was given."""
    one = shown([Image.new("RGB", (4000, 3000))])
    assert (one.width, one.height) == (4000, 3000)
    assert one.frames[0].startswith("data:image/jpeg;base64,")
    assert len(one.frames[0]) < 100_000
    assert shown([Image.new("RGBA", (8, 8))]).frames[0].startswith("data:image/png;base64,")
