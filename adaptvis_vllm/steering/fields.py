"""The single fields of `SteeringParams`: published values, allowed values, canonical forms."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeGuard

MODES = ("off", "scaling", "adaptive", "candidates")
CONFIDENCES = ("max_prob", "margin", "entropy")
SPANS = ("embeddings", "interval", "image", "video", "all")

ALPHA_MAX = 100.0
ALPHA_MIN = 2.0**-126  # smallest normal float32: alpha stays > 0 on the device
DECIMALS_MAX = 6
LAYER_MAX = 9999
CANDIDATES_MAX = 64  # of a request, whatever room the engine has
MAPS_TOKENS_MAX = 1024

# AdaptVis (arXiv 2503.01773): alpha_low, alpha_high, threshold of the four-option prompts.
ADAPTIVE_PRESETS: dict[str, tuple[float, float, float]] = {
    "controlled_a": (0.5, 1.5, 0.4),
    "controlled_b": (0.5, 1.5, 0.35),
    "coco": (0.5, 1.2, 0.3),
    "coco_one": (0.5, 1.2, 0.3),
    "coco_two": (0.5, 1.2, 0.3),
    "vg": (0.5, 2.0, 0.2),
    "vg_one": (0.5, 2.0, 0.2),
    "vg_two": (0.5, 2.0, 0.2),
}
# ScalingVis (same paper): alpha.
SCALING_PRESETS: dict[str, float] = {
    "controlled_a": 0.8,
    "controlled_b": 0.8,
    "coco": 1.2,
    "coco_one": 1.2,
    "coco_two": 1.2,
    "vg": 2.0,
    "vg_one": 2.0,
    "vg_two": 2.0,
    "vsr": 0.5,
}
PRESETS = tuple(SCALING_PRESETS)


class BadParameter(ValueError):
    """A wrong steering parameter. field: its name without prefix, "" if there is no such field."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def check_field(name: str, value: Any, prefix: str) -> Any:
    """The value of one field in its canonical form, or ValueError."""
    full = prefix + name
    choices = {"mode": MODES, "confidence": CONFIDENCES, "span": SPANS, "preset": PRESETS}
    if name in choices:
        if not isinstance(value, str) or value not in choices[name]:
            hint = nearest(value, choices[name], "") if isinstance(value, str) else ""
            raise BadParameter(
                f"{full} must be one of {', '.join(choices[name])}, not {show(value)}{hint}", name
            )
        return "embeddings" if (name, value) == ("span", "all") else value
    if name == "layers":
        return _canonical_layers(value, full)
    if name == "maps":
        return _canonical_maps(value, full)
    if name == "maps_tokens":
        if not _is_int(value) or not 0 <= value <= MAPS_TOKENS_MAX:
            raise BadParameter(
                f"{full} must be a whole number from 0 to {MAPS_TOKENS_MAX}, not {show(value)}",
                name,
            )
        return int(value)
    if name == "candidates":
        return _canonical_candidates(value, full)
    if name == "confidence_decimals":
        if isinstance(value, str) and value == "none":
            return None
        if not _is_int(value) or not 0 <= value <= DECIMALS_MAX:
            raise BadParameter(
                f"{full} must be a whole number from 0 to {DECIMALS_MAX}, or 'none', "
                f"not {show(value)}",
                name,
            )
        return int(value)
    if name == "threshold":
        if not _is_number(value) or not 0 <= value <= 1:
            raise BadParameter(f"{full} must be a number from 0 to 1, not {show(value)}", name)
        return float(value)
    if not _is_number(value) or not ALPHA_MIN <= value <= ALPHA_MAX:
        raise BadParameter(
            f"{full} must be a number greater than 0 and at most {ALPHA_MAX:g}, not {show(value)}",
            name,
        )
    return float(value)


def _canonical_maps(value: Any, full: str) -> str | None:
    """As layers; "all" stays, and "none" becomes None."""
    if isinstance(value, str) and value in ("all", "none"):
        return value if value == "all" else None
    return _canonical_layers(value, full, "maps", "'all' or 'none'")


def _canonical_layers(
    value: Any, full: str, field: str = "layers", words: str = "'all'"
) -> str | None:
    """Sorted, merged ranges: "2,0-1" and [0, 1, 2] both become "0-2"; "all" becomes None.

    field, words: for the error, the field's name and the words that it takes beside numbers.
    """
    if isinstance(value, str) and value == "all":
        return None
    items = value if isinstance(value, list | tuple) else [value]
    try:
        if not all(isinstance(i, str) or _is_int(i) for i in items):
            raise ValueError
        chosen = sorted(layer_indices(",".join(str(i) for i in items)))
    except ValueError:
        raise BadParameter(
            f"{full} must be layer numbers such as '0-31' or '0,2,5-7' (at most {LAYER_MAX}), "
            f"or {words}, not {show(value)}",
            field,
        ) from None
    ranges: list[list[int]] = []
    for i in chosen:
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _canonical_candidates(value: Any, full: str) -> tuple[float, ...]:
    """Alphas in the order given: "0.5, 2" and [0.5, 2] both become (0.5, 2.0)."""
    if isinstance(value, str):
        items: list[Any] = [_number(part) for part in value.split(",")]
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    allowed = all(_is_number(i) and ALPHA_MIN <= i <= ALPHA_MAX for i in items)
    alphas = tuple(float(i) for i in items) if allowed else ()
    if not 1 <= len(set(alphas)) == len(alphas) <= CANDIDATES_MAX:
        raise BadParameter(
            f"{full} must be 1 to {CANDIDATES_MAX} different alphas such as '0.5,1.5', each "
            f"greater than 0 and at most {ALPHA_MAX:g}, not {show(value)}",
            "candidates",
        )
    return alphas


def _number(text: str) -> float | None:
    """Of plain decimal text."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def layer_indices(text: str) -> set[int]:
    """The numbers in "0,2,5-7"; ValueError for anything else."""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (p.strip() for p in part.partition("-"))
        last = last if dash else first
        if not all(p.isascii() and p.isdigit() and len(p) <= 4 for p in (first, last)):
            raise ValueError(part)
        if int(first) > int(last):
            raise ValueError(part)
        chosen.update(range(int(first), int(last) + 1))
    return chosen


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    """A finite number; bool is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def show(value: Any) -> str:
    """repr, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def word(name: str) -> str:
    """A parameter's name, for an error message: what is not printable or long is shown."""
    return name if name.isprintable() and len(name) <= 60 else show(name)


def nearest(word: str, names: Iterable[str], prefix: str) -> str:
    """ "; did you mean ...?", or nothing."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
