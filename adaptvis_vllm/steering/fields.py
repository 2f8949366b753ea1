"""The single fields of `SteeringParams`: published values, allowed values, canonical forms."""

from __future__ import annotations

from typing import Any

from adaptvis_vllm.steering.boxes import canonical_boxes
from adaptvis_vllm.steering.first_tokens import canonical_options
from adaptvis_vllm.steering.heads import canonical_heads
from adaptvis_vllm.steering.words import (
    BadParameter,
    canonical_numbers,
    is_int,
    is_number,
    nearest,
    number,
    show,
)

MODES = ("off", "scaling", "adaptive", "candidates")
CONFIDENCES = ("max_prob", "margin", "entropy")
SPANS = ("embeddings", "interval", "image", "video", "all")
RULES = ("multiply", "add_log", "pai")
ROWS = ("last", "generated")

ALPHA_MAX = 100.0
ALPHA_MIN = 2.0**-126  # smallest normal float32: alpha stays > 0 on the device
# What alphas may be, by rule: s * alpha, s + log alpha, s + alpha * |s|.
ALPHAS: dict[str, tuple[float, float]] = {
    "multiply": (ALPHA_MIN, ALPHA_MAX),
    "add_log": (ALPHA_MIN, ALPHA_MAX),
    "pai": (-ALPHA_MAX, ALPHA_MAX),
}
DECIMALS_MAX = 6
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
# ScalingVis (same paper), and PAI: alpha.
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
    "pai": 0.2,
}
# What else a preset says. PAI (arXiv 2407.21771), without its contrast with the text-only prompt.
PRESET_FIELDS: dict[str, dict[str, str]] = {
    "pai": {"rule": "pai", "rows": "generated", "layers": "2-31"},
}
PRESETS = tuple(SCALING_PRESETS)


def check_field(name: str, value: Any, prefix: str, rule: str = "multiply") -> Any:
    """The value of one field in its canonical form, or ValueError. rule: of alphas."""
    full = prefix + name
    choices = {"mode": MODES, "confidence": CONFIDENCES, "span": SPANS, "preset": PRESETS}
    choices |= {"rule": RULES, "rows": ROWS}
    if name in choices:
        if not isinstance(value, str) or value not in choices[name]:
            hint = nearest(value, choices[name], "") if isinstance(value, str) else ""
            raise BadParameter(
                f"{full} must be one of {', '.join(choices[name])}, not {show(value)}{hint}", name
            )
        return "embeddings" if (name, value) == ("span", "all") else value
    if name == "layers":
        return canonical_numbers(value, full, name, _LAYERS)
    if name == "heads":
        return canonical_heads(value, full)
    if name in ("images", "videos"):
        return canonical_numbers(value, full, name, f"{name} of the prompt such as '0' or '0,2-3'")
    if name == "maps":
        return _canonical_maps(value, full)
    if name == "maps_tokens":
        if not is_int(value) or not 0 <= value <= MAPS_TOKENS_MAX:
            raise BadParameter(
                f"{full} must be a whole number from 0 to {MAPS_TOKENS_MAX}, not {show(value)}",
                name,
            )
        return int(value)
    if name == "boxes":
        return canonical_boxes(value, full)
    if name == "options":
        return canonical_options(value, full)
    if name == "candidates":
        return _canonical_candidates(value, full, rule)
    if name == "confidence_decimals":
        if isinstance(value, str) and value == "none":
            return None
        if not is_int(value) or not 0 <= value <= DECIMALS_MAX:
            raise BadParameter(
                f"{full} must be a whole number from 0 to {DECIMALS_MAX}, or 'none', "
                f"not {show(value)}",
                name,
            )
        return int(value)
    if name == "threshold":
        if not is_number(value) or not 0 <= value <= 1:
            raise BadParameter(f"{full} must be a number from 0 to 1, not {show(value)}", name)
        return float(value)
    if not is_alpha(value, rule):
        raise BadParameter(f"{full} must be {_one_alpha(rule)}, not {show(value)}", name)
    return float(value)


def is_alpha(value: Any, rule: str) -> bool:
    low, high = ALPHAS[rule]
    return is_number(value) and low <= value <= high


def _one_alpha(rule: str) -> str:
    """What an alpha must be, for an error."""
    low, high = ALPHAS[rule]
    if low > 0:
        return f"a number greater than 0 and at most {high:g}"
    return f"a number from {low:g} to {high:g} (rule {rule!r})"


_LAYERS = "layer numbers such as '0-31' or '0,2,5-7'"


def _canonical_maps(value: Any, full: str) -> str | None:
    """As layers; "all" stays, and "none" becomes None."""
    if isinstance(value, str) and value in ("all", "none"):
        return value if value == "all" else None
    return canonical_numbers(value, full, "maps", _LAYERS, "'all' or 'none'")


def _canonical_candidates(value: Any, full: str, rule: str) -> tuple[float, ...]:
    """Alphas in the order given: "0.5, 2" and [0.5, 2] both become (0.5, 2.0)."""
    if isinstance(value, str):
        items: list[Any] = [number(part) for part in value.split(",")]
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    alphas = tuple(float(i) for i in items) if all(is_alpha(i, rule) for i in items) else ()
    if not 1 <= len(set(alphas)) == len(alphas) <= CANDIDATES_MAX:
        each = _one_alpha(rule).removeprefix("a number ")
        raise BadParameter(
            f"{full} must be 1 to {CANDIDATES_MAX} different alphas such as '0.5,1.5', each "
            f"{each}, not {show(value)}",
            "candidates",
        )
    return alphas
