"""Pictures of the task in spatial.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image


def doc_to_image(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(Path("data/spatial") / doc["image"]).convert("RGB")]
