"""What a request may ask for: one validated type for every entrance.

Import-light on purpose (no torch, no vLLM): it is loaded in every vLLM process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from adaptvis_vllm.steering.fields import (
    ADAPTIVE_PRESETS,
    MODES,
    SCALING_PRESETS,
    BadParameter,
    check_field,
    layer_indices,
    nearest,
    show,
    word,
)

PREFIX = "adaptvis_"
_ADAPTIVE_FIELDS = ("alpha_low", "alpha_high", "threshold")
_USED = {
    "off": (),
    "scaling": ("alpha",),
    "adaptive": _ADAPTIVE_FIELDS,
    "candidates": ("candidates",),
}
_STEERS = ("scaling", "adaptive")
_NEUTRAL = ("layers", "confidence", "confidence_decimals", "span", "maps", "maps_tokens")
_NEVER_NONE = ("mode", "confidence", "span", "maps_tokens")


@dataclass(frozen=True)
class SteeringParams:
    """Steering of one request (AdaptVis and ScalingVis, arXiv 2503.01773).

    The logits of the last prompt token towards the image are multiplied by alpha.

    mode: "off", "scaling" (alpha is given), "adaptive" (alpha_low if the confidence of
        the unsteered first token is < threshold, else alpha_high) or "candidates" (the answer
        is not steered; the report has the best first token under each alpha). Left empty, it
        is inferred: alpha means scaling, alpha_low, alpha_high or threshold adaptive,
        candidates candidates; a preset alone means adaptive where the paper has such a
        setting, else scaling; maps alone mean off.
    alpha, alpha_low, alpha_high: finite, > 0, <= 100.
    threshold: in [0, 1], as every confidence is.
    layers: decoder layers to steer, "0-31" or "0,2,5-7"; None or "all" for all of them.
    confidence: of the raw logits' softmax p over the vocabulary V: "max_prob" is max p;
        "margin" the largest p minus the second; "entropy" 1 - H(p) / log V.
    confidence_decimals: round the confidence before comparing; 0 to 6, None for not at
        all; 2 is what the paper's code does.
    span: "embeddings" or "all" scales the embeddings of images and of video frames, nothing
        between them; "image" or "video" only those of the one kind; "interval" everything
        from the first to the last of them, as the paper's code does.
    preset: published values by dataset name, for alphas and threshold not given.
    candidates: different alphas, in the report's order. An engine has room for
        `defaults.max_candidates` of them.
    maps: decoder layers whose attention weights come with the answer (`maps.Maps`), as layers
        are written; None or "none" for no layer.
    maps_tokens: so many generated tokens' rows come too; 0 to 1024.

    Values are checked and completed at construction: ValueError names the field.
    """

    mode: str = ""
    alpha: float | None = None
    alpha_low: float | None = None
    alpha_high: float | None = None
    threshold: float | None = None
    layers: str | None = None
    confidence: str = "max_prob"
    confidence_decimals: int | None = None
    span: str = "embeddings"
    preset: str | None = None
    candidates: tuple[float, ...] | None = None
    maps: str | None = None
    maps_tokens: int = 0

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if given["mode"] == "":
            del given["mode"]
        for name, value in _resolve(given, "", None).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_flat(
        cls, args: Mapping[str, Any] | None, *, defaults: SteeringParams | None = None
    ) -> SteeringParams | None:
        """Read the `adaptvis_*` keys of `SamplingParams.extra_args` or `vllm_xargs`.

        Other keys are ignored, except names that begin with "adaptvis" in whatever case,
        which are errors; without any of ours the result is `defaults`. What the
        request leaves out is taken from `defaults`: all of it where the modes agree, else
        layers, confidence, confidence_decimals, span and maps. A value of None is left out.
        ValueError names the offending key.
        """
        given = {}
        for key, value in (args or {}).items():
            if str(key).startswith(PREFIX):
                given[key[len(PREFIX) :]] = value
            elif str(key).lower().startswith("adaptvis"):
                names = [PREFIX + f.name for f in fields(cls)]
                raise BadParameter(
                    f"unknown parameter {word(key)}{nearest(str(key).lower(), names, '')}"
                )
        return cls._build(given, PREFIX, defaults)

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, defaults: SteeringParams | None = None
    ) -> SteeringParams | None:
        """The same for keys without the prefix, all of which must be ours.

        For `additional_config={"adaptvis": {...}}` and the `adaptvis` object of a row.
        """
        if not isinstance(values, Mapping):
            raise BadParameter(f"adaptvis must be an object with named fields, not {show(values)}")
        return cls._build({str(k): v for k, v in values.items()}, "", defaults)

    @classmethod
    def _build(
        cls, given: dict[str, Any], prefix: str, defaults: SteeringParams | None
    ) -> SteeringParams | None:
        names = [f.name for f in fields(cls)]
        for key in given:
            if key not in names:
                raise BadParameter(
                    f"unknown parameter {word(prefix + key)}{nearest(key, names, prefix)}"
                )
        given = {k: v for k, v in given.items() if v is not None}
        if not given:
            return defaults
        return cls(**_resolve(given, prefix, defaults))

    def extra_args(self) -> dict[str, str | int | float]:
        """Flat keys for `SamplingParams.extra_args` and `vllm_xargs`.

        Complete: server-wide defaults change nothing in them. `from_flat` reads them back.
        """
        words = {"layers": "all", "confidence_decimals": "none", "maps": "none"}
        out = {}
        for f in fields(self):
            value = getattr(self, f.name)
            value = words.get(f.name) if value is None else value
            if isinstance(value, tuple):
                value = ",".join(map(repr, value))
            if value is not None:
                out[PREFIX + f.name] = value
        return out

    @property
    def steers(self) -> bool:
        """Whether the answer is steered, where there is an image."""
        return self.mode in _STEERS

    def key(self) -> str:
        """Canonical text of all that influences steered K and V; "" when none are."""
        if not self.steers:
            return ""
        parts = [self.mode, *(repr(getattr(self, name)) for name in _USED[self.mode])]
        if self.mode == "adaptive":
            parts += [self.confidence, str(self.confidence_decimals)]
        return ":".join(["adaptvis", *parts, self.layers or "all", self.span])

    def layer_set(self, num_layers: int, *, prefix: str = "") -> frozenset[int] | None:
        """Indices of the layers to steer, None for all; ValueError for one >= num_layers."""
        return None if self.layers is None else _layers_of(self, "layers", num_layers, prefix)

    def map_layers(self, num_layers: int, *, prefix: str = "") -> list[int]:
        """Indices of the captured layers, ascending; ValueError for one >= num_layers."""
        if self.maps is None:
            return []
        if self.maps == "all":
            return list(range(num_layers))
        return sorted(_layers_of(self, "maps", num_layers, prefix))


def _layers_of(params: SteeringParams, field: str, num_layers: int, prefix: str) -> frozenset[int]:
    text = getattr(params, field)
    chosen = layer_indices(text)
    if max(chosen) >= num_layers:
        raise BadParameter(
            f"{prefix}{field} is {text!r}, but the model has layers 0-{num_layers - 1}", field
        )
    return frozenset(chosen)


def completed(sampling_params: Any) -> SteeringParams | None:
    """The steering of a request that admission has let in; None if there is none.

    sampling_params: vLLM's. Admission resolved defaults and presets and wrote the result into
    `extra_args`, complete; the scheduler and every worker read that here, each once a request. So
    all of them have the same values without telling each other: block hashes in the scheduler and
    rows in the workers rest on it.
    """
    if sampling_params is None:
        return None
    return SteeringParams.from_flat(sampling_params.extra_args)


def AdaptVis(
    alpha_low: float | None = None,
    alpha_high: float | None = None,
    threshold: float | None = None,
    *,
    preset: str | None = None,
    layers: str | None = None,
    confidence: str = "max_prob",
    confidence_decimals: int | None = None,
    span: str = "embeddings",
    maps: str | None = None,
    maps_tokens: int = 0,
) -> SteeringParams:
    """Adaptive steering; all three numbers, or a preset that supplies what is left out."""
    return SteeringParams(
        mode="adaptive",
        alpha_low=alpha_low,
        alpha_high=alpha_high,
        threshold=threshold,
        layers=layers,
        confidence=confidence,
        confidence_decimals=confidence_decimals,
        span=span,
        preset=preset,
        maps=maps,
        maps_tokens=maps_tokens,
    )


def ScalingVis(
    alpha: float | None = None,
    *,
    preset: str | None = None,
    layers: str | None = None,
    span: str = "embeddings",
    maps: str | None = None,
    maps_tokens: int = 0,
) -> SteeringParams:
    """Steering with one alpha, given or a preset's."""
    return SteeringParams(
        "scaling",
        alpha,
        layers=layers,
        span=span,
        preset=preset,
        maps=maps,
        maps_tokens=maps_tokens,
    )


def Candidates(
    alphas: Sequence[float],
    *,
    layers: str | None = None,
    confidence: str = "max_prob",
    span: str = "embeddings",
) -> SteeringParams:
    """No steering, and the best first token under each alpha in the report."""
    return SteeringParams(
        "candidates",
        layers=layers,
        confidence=confidence,
        span=span,
        candidates=tuple(alphas),
    )


def Off(
    *, span: str = "embeddings", maps: str | None = None, maps_tokens: int = 0
) -> SteeringParams:
    """No steering, whatever the server's default."""
    return SteeringParams("off", span=span, maps=maps, maps_tokens=maps_tokens)


def _resolve(
    given: Mapping[str, Any], prefix: str, defaults: SteeringParams | None
) -> dict[str, Any]:
    """Check the given values, settle the mode, fill in preset and defaults."""
    ok = {
        k: check_field(k, v, prefix) for k, v in given.items() if v is not None or k in _NEVER_NONE
    }
    mode = ok.get("mode") or _infer_mode(ok, prefix, defaults)
    preset = ok.get("preset")
    for name in ("alpha", *_ADAPTIVE_FIELDS, "candidates", "preset"):
        used = _USED[mode] + (("preset",) if mode in _STEERS else ())
        if name in ok and name not in used:
            raise BadParameter(f"{prefix}{name} does not go with {prefix}mode {mode!r}", name)
    out: dict[str, Any] = {"mode": mode, "preset": preset}
    if preset is not None:
        out |= _preset_values(preset, mode, prefix)
    for name in _USED[mode]:
        if name in ok:
            out[name] = ok[name]
        elif name not in out and defaults is not None and defaults.mode == mode:
            out[name] = getattr(defaults, name)
        if out.get(name) is None:
            raise BadParameter(f"{prefix}{name} is missing: {prefix}mode {mode!r} needs it", name)
    for name in _NEUTRAL:
        if name in ok:
            out[name] = ok[name]
        elif defaults is not None and (name != "maps_tokens" or "maps" not in ok):
            out[name] = getattr(defaults, name)
    if out.get("maps_tokens") and out.get("maps") is None:
        raise BadParameter(
            f"{prefix}maps_tokens needs {prefix}maps: layers, or 'all'", "maps_tokens"
        )
    return out


def _infer_mode(ok: Mapping[str, Any], prefix: str, defaults: SteeringParams | None) -> str:
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
