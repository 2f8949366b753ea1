"""Every family of models that the tests answer with, one entry each.

A family that cannot be steered is in the table too, with the reason in `refused`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.llava import make_llava
from models.llava_variants import make_llava_next, make_pixtral
from models.qwen2_5_vl import make_qwen2_5_vl


@dataclass(frozen=True)
class Family:
    """One family, as `test_families.py` runs it and README's table names it.

    name: in the table. make: writes a tiny checkpoint into a new folder. image, video: the
    placeholder of one of them in a prompt; video is empty where the family takes none.
    note: for the table, what a reader may ask about the positions.
    engine: options of `engine.make_llm`. refused: words of the sentence with which start-up
    refuses the family; empty where it is steered.
    """

    name: str
    make: Callable[[Path], Path]
    image: str
    video: str = ""
    note: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

FAMILIES: dict[str, Family] = {
    "llava": Family("LLaVA-1.5", make_llava, "<image>"),
    "llava-next": Family(
        "LLaVA-NeXT (1.6)", make_llava_next, "<image>", note="base view, tiles and newlines"
    ),
    "pixtral": Family("Pixtral", make_pixtral, "[IMG]"),
    "qwen2.5-vl": Family("Qwen2.5-VL", make_qwen2_5_vl, _QWEN_IMAGE),
}
