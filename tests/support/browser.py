"""Pages opened in headless Chromium: measured, pictured, and acted on as a user does."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from support.waiting import HANG_S, until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is here")
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
)

# For every figure: its heading, its size on the page, and how much is drawn in it.
MEASURE = """
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("figure")].map(figure => {
    const drawing = figure.querySelector("svg, img"), box = drawing.getBoundingClientRect();
    return {
      title: figure.querySelector("h3").innerText, kind: drawing.tagName.toLowerCase(),
      width: box.width, height: box.height, left: box.left, right: box.right,
      visible: drawing.checkVisibility(), loaded: drawing.complete !== false,
      pixels: drawing.naturalWidth || 0, shapes: drawing.querySelectorAll("path, use").length,
    };
  });
  const page = { figures: seen, width: document.documentElement.scrollWidth,
                 window: innerWidth, tables: document.querySelectorAll("td").length };
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(page);
  document.body.append(out);
});
</script>
"""


def measure(page: Path, folder: Path) -> dict[str, Any]:
    """Sizes of the page and of each of its figures, in CSS pixels, once it is loaded."""
    copy = folder / "measured.html"
    copy.write_text(page.read_text(encoding="utf-8") + MEASURE, encoding="utf-8")
    text = _chromium(copy, folder, "--dump-dom")
    found = re.search(r'<pre id="measured">(.*?)</pre>', text, re.DOTALL)
    assert found is not None, text[-500:]
    return json.loads(html.unescape(found[1]))


def screenshot(page: Path, picture: Path, folder: Path, *, dark: bool = False) -> None:
    """The page as PNG; folder: for the browser's profile."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.unlink(missing_ok=True)
    scheme = f"--blink-settings=preferredColorScheme={int(not dark)}"
    _chromium(page, folder, f"--screenshot={picture}", scheme)
    assert picture.stat().st_size > 10_000


def all_plots_visible(measured: dict[str, Any], *, least: int) -> None:
    """Asserts it of at least so many figures; nothing sticks out of the page."""
    assert len(measured["figures"]) >= least
    assert measured["width"] <= measured["window"]
    for figure in measured["figures"]:
        assert figure["visible"], figure
        assert figure["loaded"], figure
        assert figure["width"] >= 100, figure
        assert figure["height"] >= 50, figure
        assert 0 <= figure["left"] < figure["right"] <= measured["window"], figure
        assert figure["shapes"] > 10 if figure["kind"] == "svg" else figure["pixels"] > 10, figure


def _chromium(page: Path, folder: Path, *options: str) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *_OPTIONS,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,2600",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class Tab:
    """One page in a headless Chromium that a test acts on, by the DevTools protocol.

    folder: for the browser's profile. requests: URLs that the page asked for. errors: what scripts
    threw and what the console was told as an error. Close it, or use it in a `with`.
    """

    def __init__(self, folder: Path, width: int = 1200, height: int = 1000) -> None:
        assert CHROMIUM is not None
        profile = folder / "tab"
        command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        command.append(f"--window-size={width},{height}")
        self.process = subprocess.Popen(
            [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.closing = ExitStack()
        self.number = 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        port_file = profile / "DevToolsActivePort"
        try:
            until(lambda: port_file.exists() and port_file.read_text(), self.process)
            base = f"http://127.0.0.1:{port_file.read_text().split()[0]}"
            pages = [t for t in httpx.get(f"{base}/json").json() if t["type"] == "page"]
            socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
            self.socket = self.closing.enter_context(socket)
            for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.process.kill()
            raise

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()
        self.process.terminate()
        self.process.wait(HANG_S)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result; what happened meanwhile is noted."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=HANG_S))
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, about = message.get("method"), message.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif kind == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression, or what its promise brings."""
        done = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def until(self, expression: str) -> None:
        """Until it is true."""
        until(lambda: self.value(f"Boolean({expression})"), self.process)

    def text(self, selector: str) -> str:
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def visible(self, selector: str) -> bool:
        found = f"document.querySelector({json.dumps(selector)})"
        return self.value(f"{found} !== null && {found}.checkVisibility()")

    def click(self, selector: str, x: float = 0.5, y: float = 0.5, *, press: bool = True) -> None:
        """With the mouse, at a place inside the element given as parts of its width and height;
        press: False only points at it."""
        box = self.value(
            f"""(() => {{ const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{block: "center", behavior: "instant"}});
            const {{left, top, width, height}} = found.getBoundingClientRect();
            return [left, top, width, height]; }})()"""
        )
        at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in ("mousePressed", "mouseReleased") if press else ():
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def press(self, key: str, times: int = 1) -> None:
        """A key such as ArrowRight, where the focus is."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        codes |= {"Home": 36, "End": 35, "Enter": 13, "Tab": 9, " ": 32}
        about = {"key": key, "code": "Space" if key == " " else key}
        about["windowsVirtualKeyCode"] = codes[key]
        about |= {"text": {"Enter": "\r", " ": " "}[key]} if key in ("Enter", " ") else {}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", **about)
            self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, selector: str, text: str) -> None:
        """Into a field, in place of what is there."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.send("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """An option of a select, as its own event."""
        self.value(
            f"""(() => {{ const found = document.querySelector({json.dumps(selector)});
            found.value = {json.dumps(value)};
            for (const kind of ["input", "change"])
              found.dispatchEvent(new Event(kind, {{bubbles: true}})); }})()"""
        )

    def give_files(self, selector: str, *paths: Path) -> None:
        """To an input for files."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def screenshot(self, picture: Path, *, dark: bool = False, width: int = 1200) -> None:
        """The whole page as PNG."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        assert self.value("document.documentElement.scrollWidth <= innerWidth"), "it is too wide"
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(data))
        self.send("Emulation.clearDeviceMetricsOverride")
