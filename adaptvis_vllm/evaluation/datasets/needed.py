"""Packages of the extra `eval`."""

from __future__ import annotations

from importlib.util import find_spec


def need(*packages: str) -> None:
    """RuntimeError, which says what to install, for the first that is missing."""
    for name in packages:
        if find_spec(name) is None:
            raise RuntimeError(f"the package {name} is missing: pip install 'adaptvis-vllm[eval]'")
