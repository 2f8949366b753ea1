"""Report pages opened in headless Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.waiting import HANG_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is here")

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
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,2600",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
