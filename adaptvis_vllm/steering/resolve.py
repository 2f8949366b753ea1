"""What the fields of a request come to: mode and rule, presets, defaults.

Imports nothing of `params`, whose `SteeringParams` it fills.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptvis_vllm.steering.fields import (
    ADAPTIVE_PRESETS,
    MODES,
    PRESET_FIELDS,
    ROWS,
    RULES,
    SCALING_PRESETS,
    check_field,
)
from adaptvis_vllm.steering.words import BadParameter

_ADAPTIVE_FIELDS = ("alpha_low", "alpha_high", "threshold")
USED = {
    "off": (),
    "scaling": ("alpha",),
    "adaptive": _ADAPTIVE_FIELDS,
    "candidates": ("candidates",),
}
STEERS = ("scaling", "adaptive")
GENERATED = ROWS[1]
_MEASURES = ("adaptive", "candidates")  # modes with a confidence
_NEUTRAL = (
    *("layers", "heads", "confidence", "confidence_decimals", "span", "images", "videos"),
    "boxes",
    *("options", "rows", "maps", "maps_tokens"),
)
# Of these a request has none from the defaults where it gives another one.
_TOGETHER = (("layers", "heads"), ("span", "images", "videos", "boxes"))
_EXCLUDE = (("layers", "heads"),)
_NEVER_NONE = ("mode", "confidence", "span", "rule", "rows", "maps_tokens")
INFERRED = ("mode", "rule", "rows")  # where they are ""


def resolve(given: Mapping[str, Any], prefix: str, defaults: Any) -> dict[str, Any]:
    """All fields of `SteeringParams`: check the given values, settle mode and rule, fill in preset
    and defaults (a `SteeringParams`, or None)."""
    rule = _rule(given, prefix, defaults)
    ok = {
        k: check_field(k, v, prefix, rule)
        for k, v in given.items()
        if v is not None or k in _NEVER_NONE
    }
    for first, second in _EXCLUDE:
        if first in ok and second in ok:
            raise BadParameter(f"{prefix}{second} does not go with {prefix}{first}", second)
    mode = ok.get("mode") or _infer_mode(ok, prefix, defaults)
    preset = ok.get("preset")
    for name in ("alpha", *_ADAPTIVE_FIELDS, "candidates", "preset", "options"):
        used = USED[mode] + (("preset",) if mode in STEERS else ())
        used += ("options",) if mode in _MEASURES or ok.get("options") is None else ()
        if name in ok and name not in used:
            raise BadParameter(f"{prefix}{name} does not go with {prefix}mode {mode!r}", name)
    if ok.get("rows") == GENERATED and mode not in STEERS:
        raise BadParameter(
            f"{prefix}rows {GENERATED!r} does not go with {prefix}mode {mode!r}", "rows"
        )
    out: dict[str, Any] = {"mode": mode, "preset": preset, "rule": rule, "rows": ROWS[0]}
    if preset is not None:
        said = PRESET_FIELDS.get(preset, {})
        if rule != said.get("rule", RULES[0]):
            raise BadParameter(
                f"{prefix}preset {preset!r} is a setting of {prefix}rule "
                f"{said.get('rule', RULES[0])!r}, not of {rule!r}",
                "preset",
            )
        out["rows"] = said.get("rows", ROWS[0])
        out |= _preset_values(preset, mode, prefix)
    for name in USED[mode]:
        if name in ok:
            out[name] = ok[name]
        elif name not in out and defaults and (defaults.mode, defaults.rule) == (mode, rule):
            out[name] = getattr(defaults, name)
        if out.get(name) is None:
            raise BadParameter(f"{prefix}{name} is missing: {prefix}mode {mode!r} needs it", name)
    own = {name for group in _TOGETHER if any(n in ok for n in group) for name in group}
    own |= {"maps_tokens"} if "maps" in ok else set()
    own |= {"options"} if mode not in _MEASURES else set()
    own |= {"rows"} if mode not in STEERS or preset is not None else set()
    for name in _NEUTRAL:
        if name in ok:
            out[name] = ok[name]
        elif defaults is not None and name not in own:
            out[name] = getattr(defaults, name)
    layers = PRESET_FIELDS.get(preset or "", {}).get("layers")
    if layers is not None and "layers" not in ok and "heads" not in ok:
        out |= {"layers": layers, "heads": None}
    elif layers is not None and ok.get("layers") != layers:
        out["preset"] = None  # which would say otherwise
    for name, span in (("images", "video"), ("videos", "image")):
        if out.get(name) is not None and out.get("span") == span:
            raise BadParameter(f"{prefix}{name} does not go with {prefix}span {span!r}", name)
    if out.get("boxes") is not None:
        if out.get("videos") is not None:
            raise BadParameter(f"{prefix}boxes does not go with {prefix}videos", "boxes")
        if out.get("span", "embeddings") not in ("embeddings", "image"):
            raise BadParameter(
                f"{prefix}boxes does not go with {prefix}span {out['span']!r}", "boxes"
            )
    if out.get("maps_tokens") and out.get("maps") is None:
        raise BadParameter(
            f"{prefix}maps_tokens needs {prefix}maps: layers, or 'all'", "maps_tokens"
        )
    return out


def _rule(given: Mapping[str, Any], prefix: str, defaults: Any) -> str:
    """As given; else a preset's, or the defaults'."""
    if "rule" in given:
        return check_field("rule", given["rule"], prefix)
    preset = given.get("preset")
    if defaults is None or preset is not None:
        said = PRESET_FIELDS.get(preset, {}) if isinstance(preset, str) else {}
        return said.get("rule", RULES[0])
    return defaults.rule


def _infer_mode(ok: Mapping[str, Any], prefix: str, defaults: Any) -> str:
    adaptive = [name for name in _ADAPTIVE_FIELDS if name in ok]
    if "alpha" in ok and adaptive:
        raise BadParameter(
            f"{prefix}alpha (mode 'scaling') does not go with {prefix}{adaptive[0]} "
            f"(mode 'adaptive')",
            "alpha",
        )
    if "candidates" in ok:
        return "candidates"
    if "alpha" in ok:
        return "scaling"
    if adaptive:
        return "adaptive"
    if "preset" in ok:
        return "adaptive" if ok["preset"] in ADAPTIVE_PRESETS else "scaling"
    if "maps" in ok or ok.get("maps_tokens"):
        return defaults.mode if defaults is not None else "off"
    if defaults is None or defaults.mode == "off":
        raise BadParameter(f"{prefix}mode is missing: it must be one of {', '.join(MODES)}", "mode")
    return defaults.mode


def _preset_values(preset: str, mode: str, prefix: str) -> dict[str, float]:
    if mode == "scaling":
        return {"alpha": SCALING_PRESETS[preset]}
    if preset not in ADAPTIVE_PRESETS:
        raise BadParameter(
            f"{prefix}preset {preset!r} has no setting for {prefix}mode 'adaptive'", "preset"
        )
    return dict(zip(_ADAPTIVE_FIELDS, ADAPTIVE_PRESETS[preset], strict=True))
