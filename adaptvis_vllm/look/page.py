"""The page: one HTML file that asks no other host for anything."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from adaptvis_vllm.maps.maps import Maps

SIDE = 1280  # pixels of the longer side of a picture in the page
_SMALL = 256 * 256  # so many pixels are kept as they are
FOLDER = Path(__file__).parent
# In this order: each uses what is above it.
SCRIPTS = ("npz.js", "weights.js", "draw.js", "view.js", "tables.js", "ask.js", "start.js")


@dataclass(frozen=True)
class Answer:
    """text: generated. confidence: the largest probability of its first token; None if unknown.

    report: `steering.report.Report.as_dict()`.
    """

    text: str
    confidence: float | None
    report: Mapping[str, Any] | None


@dataclass(frozen=True)
class Shown:
    """A picture or video of the prompt. width, height: as the maps' boxes count.

    frames: `data:` URIs: of a picture one, of a video one for each frame that the model's processor
    was given.
    """

    width: int
    height: int
    frames: Sequence[str]
    name: str = ""


@dataclass(frozen=True)
class Look:
    """What is shown. base: the unsteered answer. steered: None where none was asked for.

    maps: the steered request's, else the unsteered one's; None where there are none, and then
    `missing` says why.
    """

    question: str
    pictures: Sequence[Shown]
    base: Answer
    steered: Answer | None = None
    maps: Maps | None = None
    missing: str = ""
    facts: Mapping[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the maps as the base64 of their npz, as a server sends them."""
        rest = {name: value for name, value in vars(self).items() if name != "maps"}
        out = {name: _plain(value) for name, value in rest.items()}
        out["maps"] = self.maps and base64.b64encode(self.maps.to_bytes()).decode()
        return out


def page(look: Look | None = None) -> str:
    """The HTML. Without anything to show it is the live page: it asks the server it came from."""
    # "<" would end the script's element, whatever follows.
    data = json.dumps(look and look.as_dict(), allow_nan=False).replace("<", "\\u003c")
    return _empty().replace("__DATA__", data, 1)


def shown(pictures: Sequence[Image], name: str = "") -> Shown:
    """pictures: one, or a video's frames, as the model's processor was given them."""
    width, height = pictures[0].size
    return Shown(width, height, [_uri(picture) for picture in pictures], name)


@cache
def _empty() -> str:
    """The page around `__DATA__`, which is the last of the names to be replaced."""
    text = _read("page.html")
    text = text.replace("/* page.css */", _read("page.css"), 1)
    return text.replace("/* scripts */", "\n".join(map(_read, SCRIPTS)), 1)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _uri(picture: Image) -> str:
    picture = picture.convert("RGB")
    small = picture.width * picture.height <= _SMALL
    if not small:
        picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "PNG" if small else "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _plain(value: Any) -> Any:
    if isinstance(value, Answer | Shown):
        return asdict(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
