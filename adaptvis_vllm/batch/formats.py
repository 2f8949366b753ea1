"""The two formats of a batch, by name, and engines that speak one of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.offline.engine import VllmEngine
from adaptvis_vllm.offline.format import Format, RowFormat


def make_engine(
    options: dict[str, Any],
    kind: str = "rows",
    folder: str = ".",
    logprobs: int | None = None,
    defaults: dict[str, Any] | None = None,
    share: float = 0.25,
    maps: str | None = None,
) -> VllmEngine:
    """kind: "rows" or "openai". maps: a folder. The rest as in `VllmEngine` and `RowFormat`."""
    make = partial(_format, kind, Path(folder), logprobs, defaults, maps)
    return VllmEngine(options, make, share)


def _format(
    kind: str,
    folder: Path,
    logprobs: int | None,
    defaults: dict[str, Any] | None,
    maps: str | None,
    llm: Any,
) -> Format:
    map_folder = None if maps is None else MapFolder(maps)
    if kind == "openai":
        from adaptvis_vllm.batch.openai import OpenAIFormat  # loads vLLM's server

        return OpenAIFormat(llm, map_folder)
    return RowFormat(llm, folder, logprobs, defaults, map_folder)
