"""The two formats of a batch, by name, and engines that speak one of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from adaptvis_vllm.offline.engine import VllmEngine
from adaptvis_vllm.offline.format import Format, RowFormat


def make_engine(
    options: dict[str, Any],
    kind: str = "rows",
    folder: str = ".",
    logprobs: int | None = None,
    defaults: dict[str, Any] | None = None,
    share: float = 0.25,
) -> VllmEngine:
    """kind: "rows" or "openai". The rest as in `VllmEngine` and `RowFormat`."""
    return VllmEngine(options, partial(_format, kind, Path(folder), logprobs, defaults), share)


def _format(
    kind: str, folder: Path, logprobs: int | None, defaults: dict[str, Any] | None, llm: Any
) -> Format:
    if kind == "openai":
        from adaptvis_vllm.batch.openai import OpenAIFormat  # loads vLLM's server

        return OpenAIFormat(llm)
    return RowFormat(llm, folder, logprobs, defaults)
