"""`/adaptvis/look` of a real server in headless Chromium: asked, moved, refused.

Screenshots: out/tests/look_live*.png.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from checkpoints.images import make_image
from checkpoints.text import make_text
from support.browser import Tab, needs_chromium
from support.http_server import DEFAULTS, OFF, QUESTION, chat, running, text

ARTEFACTS = Path(__file__).parents[2] / "out/tests"
KEY = "secret"
PICTURE = 3
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with an API key, whose model takes no images."""
    folder = tmp_path_factory.mktemp("text")
    options = ("--api-key", KEY, "--load-format", "dummy")
    with running(folder, make_text(folder / "model"), *options) as base:
        yield base


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with Tab(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, url: str) -> Tab:
    """The page, opened."""
    opened(browser, url)
    browser.until("document.querySelector('#facts').innerText.includes('tiny')")
    return browser


def opened(tab: Tab, url: str) -> None:
    tab.open("about:blank")
    tab.requests.clear()
    tab.errors.clear()
    tab.open(f"{url}/adaptvis/look")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in (PICTURE, PICTURE + 1)]
    for number, path in enumerate(paths):
        make_image(PICTURE + number).save(path)
    return paths


def ask(tab: Tab, *files: Path, question: str = QUESTION) -> None:
    tab.give_files("#files", *files)
    tab.until(f"document.querySelectorAll('#thumbs img').length === {len(files)}")
    tab.write("#question", question)
    tab.write("#max_tokens", "8")
    tab.click("#send")


def settled(tab: Tab) -> None:
    """Until an answer or a sentence is there."""
    tab.until("!document.querySelector('#send').disabled && !/^Asking/.test($('said').innerText)")


def said(tab: Tab) -> str:
    return tab.text("#said")


def answers(tab: Tab) -> list[str]:
    return tab.value("[...document.querySelectorAll('.answer blockquote')].map(a => a.textContent)")


def completions(tab: Tab) -> int:
    tab.value("1")  # so that what was asked so far is known
    return sum(url.endswith("/v1/chat/completions") for url in tab.requests)


def thrown(tab: Tab) -> list[str]:
    """What scripts threw; that a request was refused is no such thing."""
    return [error for error in tab.errors if not error.startswith("Failed to load resource")]


def test_ask_and_move_alpha(tab: Tab, url: str, client: openai.OpenAI, files: list[Path]) -> None:
    """The answers are those of the API; each move asks again, the base answer only once."""
    assert tab.value("document.querySelector('#mode').value") == "default"
    ask(tab, files[0])
    tab.until("!document.querySelector('#result').hidden")
    settled(tab)
    assert said(tab) == ""
    base, steered = (text(chat(client, PICTURE, xargs)) for xargs in (OFF, None))
    assert answers(tab) == [base, steered]
    assert "adaptive" in tab.text("#answers")
    assert completions(tab) == 2
    assert tab.value("document.querySelectorAll('#pictures canvas').length") == 3
    assert tab.value("maps.L") == 4
    assert tab.value("maps.P") == 16
    assert tab.value("[...maps.sizes].join()") == ",".join(map(str, make_image(PICTURE).size))
    tab.screenshot(ARTEFACTS / "look_live.png")

    tab.choose("#mode", "scaling")
    tab.until("document.querySelector('#answers').innerText.includes('scaling')")
    assert completions(tab) == 3
    tab.value("document.querySelector('#alpha-slider').focus()")
    for keys in (1, 7):
        asked = completions(tab)
        tab.press("ArrowRight", keys)
        alpha = float(tab.value("document.querySelector('#alpha').value"))
        tab.until(f"look.steered.report.alpha === {alpha}")
        settled(tab)
        mine = text(chat(client, PICTURE, {"adaptvis_alpha": alpha}))
        assert answers(tab) == [base, mine]
        assert 1 <= completions(tab) - asked <= keys
    tab.write("#alpha", "0.3")
    tab.until("look.steered.report.alpha === 0.3")
    slider = tab.value("document.querySelector('#alpha-slider').valueAsNumber")
    assert slider == pytest.approx(-1.74, abs=0.03)

    tab.choose("#mode", "adaptive")
    tab.until("look.steered.report.mode === 'adaptive'")
    assert tab.visible("#threshold")
    assert not tab.visible("#alpha")
    shown = [float(tab.value(f"$('{name}').value")) for name in ("alpha_low", "threshold")]
    assert shown == [DEFAULTS.alpha_low, DEFAULTS.threshold]
    tab.choose("#threshold", "0")
    tab.until(f"look.steered.report.alpha === {DEFAULTS.alpha_high}")
    settled(tab)

    tab.click("#heads button:nth-child(2)")
    tab.choose("#maps", "1-2")
    tab.until("maps.L === 2")
    assert tab.value("[...maps.layers].join()") == "1,2"
    assert tab.text("#head-name") == "head 1"  # what was chosen stays
    settled(tab)
    tab.choose("#layers", "1")
    tab.until("JSON.stringify(look).length && !$('send').disabled")
    settled(tab)
    assert said(tab) == ""
    assert not thrown(tab)
    elsewhere = [one for one in tab.requests if not one.startswith((url, "data:", "about:"))]
    assert elsewhere == []


def test_several_pictures(tab: Tab, client: openai.OpenAI, files: list[Path]) -> None:
    ask(tab, *files)
    tab.until("!document.querySelector('#result').hidden")
    settled(tab)
    assert tab.value("$('picture').options.length") == 2
    assert tab.value("Math.max(...maps.image)") == 1
    tab.choose("#picture", "1")
    assert tab.value("view.picture") == 1
    assert not thrown(tab)


def test_drop(tab: Tab, files: list[Path]) -> None:
    content = json.dumps(list(files[0].read_bytes()))
    tab.value(
        f"""(() => {{ const data = new DataTransfer();
        const about = {{type: "image/png"}};
        data.items.add(new File([Uint8Array.from({content})], "dropped.png", about));
        $("drop").dispatchEvent(new DragEvent("drop", {{dataTransfer: data, cancelable: true}}));
        }})()"""
    )
    tab.until("document.querySelectorAll('#thumbs img').length === 1")
    assert "dropped.png" in tab.text("#dropped")


def test_what_is_missing(tab: Tab, files: list[Path]) -> None:
    tab.write("#question", QUESTION)
    tab.click("#send")
    tab.until("$('said').innerText === 'Choose a picture first.'")
    tab.give_files("#files", files[0])
    tab.until("document.querySelectorAll('#thumbs img').length === 1")
    tab.write("#question", " ")
    tab.click("#send")
    tab.until("$('said').innerText === 'Ask a question first.'")
    assert completions(tab) == 0


@pytest.mark.parametrize("content", [b"words", b"", b"\x89PNG\r\n\x1a\n damaged"])
def test_a_wrong_picture(tab: Tab, tmp_path: Path, files: list[Path], content: bytes) -> None:
    """The server's sentence; a right one is answered after it."""
    wrong = tmp_path / "wrong.png"
    wrong.write_bytes(content)
    ask(tab, wrong)
    tab.until("/^The server says: /.test($('said').innerText)")
    assert "bad" in tab.value("$('said').className")
    assert not tab.visible("#result")
    if content == b"words":
        tab.screenshot(ARTEFACTS / "look_live_wrong_picture.png")
        assert "image" in said(tab) or "picture" in said(tab)
        tab.give_files("#files", files[0])
        tab.until("document.querySelector('#thumbs img').naturalWidth > 0")
        tab.click("#send")
        tab.until("!document.querySelector('#result').hidden")
    assert not thrown(tab)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("#layers", "0-99", "layers is '0-99', but the model has layers 0-3"),
        ("#maps", "9", "maps"),
        ("#maps", "many", "maps"),
        ("#max_tokens", "100000", "max_tokens"),
    ],
)
def test_a_wrong_parameter(
    tab: Tab, files: list[Path], field: str, value: str, sentence: str
) -> None:
    ask(tab, files[0])
    tab.until("!document.querySelector('#result').hidden")
    settled(tab)
    tab.write(field, value)
    tab.click("#send")
    tab.until("/^The server says: /.test($('said').innerText)")
    assert sentence in said(tab)
    assert not thrown(tab)


def test_the_server_is_gone(tab: Tab, files: list[Path]) -> None:
    nothing = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    tab.send("Network.emulateNetworkConditions", offline=True, **nothing)
    try:
        ask(tab, files[0])
        tab.until("$('said').innerText === 'The server cannot be reached.'")
    finally:
        tab.send("Network.emulateNetworkConditions", offline=False, **nothing)


def test_a_key_and_a_model_without_images(browser: Tab, guarded: str, files: list[Path]) -> None:
    opened(browser, guarded)
    browser.until("$('said').innerText.includes('asks for an API key')")
    assert browser.visible("#key")
    for wrong in ("other", "schlüssel"):
        browser.write("#key", wrong)
        browser.click("#send")
        browser.until("$('said').innerText.includes('does not take this API key')")
    browser.screenshot(ARTEFACTS / "look_live_wrong_key.png")
    browser.write("#key", KEY)
    ask(browser, files[0])
    browser.until("$('said').innerText.includes('takes no images')")
    browser.screenshot(ARTEFACTS / "look_live_no_images.png")
    assert not browser.visible("#result")
    assert not thrown(browser)


def test_the_key_goes_with_requests(browser: Tab, guarded: str, files: list[Path]) -> None:
    """The server's own sentence on the picture, which it says to nobody without the key."""
    opened(browser, guarded)
    browser.until("$('said').innerText.includes('asks for an API key')")
    browser.value("known = {steerable: true}")
    ask(browser, files[0])
    browser.until("$('said').innerText.includes('asks for an API key')")
    browser.value(f"$('key').value = {json.dumps(KEY)}")  # without the event that asks what it is
    browser.click("#send")
    browser.until("/^The server says: /.test($('said').innerText)")
    assert httpx.get(f"{guarded}/adaptvis").status_code == 401


def test_the_page_is_told_of_no_key(guarded: str) -> None:
    answer: Any = httpx.get(f"{guarded}/adaptvis/look")
    assert answer.status_code == 200
    assert KEY not in answer.text
