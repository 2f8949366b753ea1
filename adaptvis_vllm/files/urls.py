"""Which sources are URLs, and why vLLM could not load one."""

from __future__ import annotations

from typing import Any


def is_remote(source: Any) -> bool:
    """Whether it is an http(s) URL."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def is_url(source: str) -> bool:
    """Whether it is no path."""
    return source[:5].lower() == "data:" or "://" in source


def reason(error: Exception) -> str:
    """Why vLLM could not load something, in a text that can be sent."""
    if isinstance(error, TimeoutError):
        return "it did not come in time"
    said = str(error).partition(" (parameter=")[0] or type(error).__name__
    if "cannot identify image file" in said:
        return "it is no picture of a format that vLLM reads"
    return said.encode(errors="backslashreplace").decode()[:200]
