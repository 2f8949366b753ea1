"""Attention maps of two ways to run the same request, and how they must agree."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adaptvis_vllm import SteeringParams
from adaptvis_vllm.maps.maps import Maps

CLOSE = 1e-3
WEIGHTS = ("before", "rest_before", "after", "rest_after", "tokens", "rest_tokens")


def mapped(
    steering: SteeringParams | None = None, layers: str = "all", tokens: int = 0
) -> SteeringParams:
    """The same request with maps; None is an unsteered one."""
    return replace(steering or SteeringParams("off"), maps=layers, maps_tokens=tokens)


def unmapped(steering: SteeringParams) -> SteeringParams:
    return replace(steering, maps=None, maps_tokens=0)


def assert_maps(
    given: Maps | None,
    expected: Maps | None,
    about: Any = None,
    embeddings: Sequence[int] | None = None,
) -> None:
    """The same rows of the same layers and positions, each weight within `CLOSE`, or both None.

    Boxes are not compared: the reference has none. embeddings: the positions of image embeddings;
    of other positions, text between two pictures, the picture is not compared. None: all are.
    """
    assert (given is None) == (expected is None), about
    if given is None or expected is None:
        return
    for name in ("layers", "positions"):
        assert getattr(given, name).tolist() == getattr(expected, name).tolist(), (about, name)
    told = np.isin(given.positions, given.positions if embeddings is None else embeddings)
    assert given.image[told].tolist() == expected.image[told].tolist(), about
    assert given.sizes.tolist() == expected.sizes.tolist(), about
    for name in WEIGHTS:
        mine, other = getattr(given, name), getattr(expected, name)
        assert (mine is None) == (other is None), (about, name)
        if mine is not None:
            assert mine.dtype == other.dtype == np.float16
            assert mine.shape == other.shape, (about, name)
            away = np.abs(mine.astype(np.float32) - other.astype(np.float32))
            assert away.max(initial=0) < CLOSE, (about, name, away.max())


def as_text(maps: Maps | None) -> str | None:
    """For JSON; `from_text` reads it."""
    return None if maps is None else b64encode(maps.to_bytes()).decode()


def from_text(text: str | None) -> Maps | None:
    return None if text is None else Maps.from_bytes(b64decode(text))


def moved(maps: Maps) -> float:
    """By how much steering changed the weight that changed most."""
    return float(np.abs(maps.weights("difference")).max())
