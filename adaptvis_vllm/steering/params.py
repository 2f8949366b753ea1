"""What a request may ask for: one validated type for every entrance.

Import-light on purpose (no torch, no vLLM): it is loaded in every vLLM process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from adaptvis_vllm.steering.boxes import read_positions
from adaptvis_vllm.steering.first_tokens import Tokens, read_tokens
from adaptvis_vllm.steering.heads import EVERY, check_heads, parse_heads
from adaptvis_vllm.steering.resolve import GENERATED, INFERRED, STEERS, USED, resolve
from adaptvis_vllm.steering.words import BadParameter, nearest, numbers_in, show, word

PREFIX = "adaptvis_"
OPTION_TOKENS = f"{PREFIX}option_tokens"  # admission's, of no request: see `completed`
POSITIONS = f"{PREFIX}positions"  # the same, of a request with boxes


@dataclass(frozen=True)
class SteeringParams:
    """Steering of one request (AdaptVis and ScalingVis, arXiv 2503.01773).

    The logits s of the last prompt token towards the image are changed by alpha, with the default
    rule multiplied by it.

    mode: "off", "scaling" (alpha is given), "adaptive" (alpha_low if the confidence of
        the unsteered first token is < threshold, else alpha_high) or "candidates" (the answer
        is not steered; the report has the best first token under each alpha). Left empty, it
        is inferred: alpha means scaling, alpha_low, alpha_high or threshold adaptive,
        candidates candidates; a preset alone means adaptive where the paper has such a
        setting, else scaling; maps alone mean off.
    alpha, alpha_low, alpha_high: finite, > 0, <= 100; with rule "pai" from -100 to 100.
    threshold: in [0, 1], as every confidence is.
    layers: decoder layers to steer, "0-31" or "0,2,5-7"; None or "all" for all of them.
    heads: query heads of layers to steer, in the place of layers: "17.3,20.0-7,25.*" are head 3 of
        layer 17, heads 0 to 7 of layer 20 and all of layer 25; None or "all" for all of them.
    confidence: of the raw logits' softmax p over the vocabulary V: "max_prob" is max p;
        "margin" the largest p minus the second; "entropy" 1 - H(p) / log V.
    confidence_decimals: round the confidence before comparing; 0 to 6, None for not at
        all; 2 is what the paper's code does.
    span: "embeddings" or "all" scales the embeddings of images and of video frames, nothing
        between them; "image" or "video" only those of the one kind; "interval" everything
        from the first to the last of them, as the paper's code does.
    images, videos: which of the prompt's pictures and videos are steered, counted from 0, "0" or
        "0,2"; None or "all" for all of them. Where one of the two is given, nothing of the other
        kind is steered that is not given too.
    boxes: regions of one picture, flat numbers x0, y0, x1, y1, ... in its pixels as given: only
        image positions whose centre lies in one are steered (`boxes.held_in`). images names the
        picture where the prompt has several. None for the whole picture.
    rule: what alpha does: "multiply" (s * alpha; AdaptVis, ScalingVis), "add_log" (s + log alpha:
        the weight before normalising times alpha) or "pai" (s + alpha * |s|). Left empty, multiply.
    preset: published values by dataset name, for alphas and threshold not given; "pai" also for
        rule, rows and layers.
    candidates: different alphas, in the report's order. An engine has room for
        `defaults.max_candidates` of them.
    rows: "last" for the last prompt token alone, or "generated" for those of all generated tokens
        too, with the alpha that was chosen. Left empty, last.
    options: the answers of the question, over which the confidence is then taken in the place of
        the vocabulary: p(option) is the probability of the tokens with which it begins
        (`first_tokens`), normalised over the options. ("choices",) stands for the choices of a
        file's question.
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
    heads: str | None = None
    images: str | None = None
    videos: str | None = None
    boxes: tuple[float, ...] | None = None
    rule: str = ""
    rows: str = ""
    options: tuple[str, ...] | None = None
    maps: str | None = None
    maps_tokens: int = 0

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in INFERRED:
            if given[name] == "":
                del given[name]
        for name, value in resolve(given, "", None).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_flat(
        cls, args: Mapping[str, Any] | None, *, defaults: SteeringParams | None = None
    ) -> SteeringParams | None:
        """Read the `adaptvis_*` keys of `SamplingParams.extra_args` or `vllm_xargs`.

        Other keys are ignored, except names that begin with "adaptvis" in whatever case,
        which are errors; without any of ours the result is `defaults`. What the
        request leaves out is taken from `defaults`: all of it where the modes agree, else
        layers or heads, confidence, confidence_decimals, span, images and videos, and maps. Alphas
        of another rule are not taken. A value of None is left out.
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
        params = object.__new__(cls)
        values = resolve(given, prefix, defaults)
        for f in fields(cls):
            object.__setattr__(params, f.name, values.get(f.name, f.default))
        return params

    def extra_args(self) -> dict[str, Any]:
        """Flat keys for `SamplingParams.extra_args` and `vllm_xargs`.

        Complete: server-wide defaults change nothing in them. `from_flat` reads them back.
        """
        words = dict.fromkeys(("confidence_decimals", "maps", "options", "boxes"), "none")
        words |= {"images": "all", "videos": "all"}
        if self.mode not in ("adaptive", "candidates"):
            del words["options"]
        if self.heads is None:
            words["layers"] = "all"
        out = {}
        for f in fields(self):
            value = getattr(self, f.name)
            value = words.get(f.name) if value is None else value
            if f.name == "options" and self.options is not None:
                value = list(self.options)
            elif isinstance(value, tuple):
                value = ",".join(map(repr, value))
            if value is not None:
                out[PREFIX + f.name] = value
        return out

    @property
    def steers(self) -> bool:
        """Whether the answer is steered, where there is an image."""
        return self.mode in STEERS

    def key(self) -> str:
        """Canonical text of all that influences steered K and V; "" when none are."""
        if not self.steers:
            return ""
        parts = [self.mode, self.rule, *(repr(getattr(self, name)) for name in USED[self.mode])]
        if self.mode == "adaptive":
            parts += [self.confidence, str(self.confidence_decimals), repr(self.options)]
        chosen = [self.layers or "all", self.heads or "all", self.images or "all"]
        chosen += [",".join(map(repr, self.boxes or ()))]
        return ":".join(["adaptvis", *parts, *chosen, self.videos or "all", self.span, self.rows])

    @property
    def steers_generated(self) -> bool:
        """Whether rows of generated tokens are steered too."""
        return self.rows == GENERATED and self.steers

    @property
    def pictures(self) -> dict[str, Any]:
        """Of the prompt, those that are steered: arguments of `span.image_positions`."""
        chosen = {"images": self.images, "videos": self.videos}
        numbers = {k: None if v is None else numbers_in(v) for k, v in chosen.items()}
        return {"span": "image" if self.boxes else self.span, **numbers}

    @property
    def kind(self) -> str:
        """ "image" or "video" where nothing of the other kind is steered, else ""."""
        given = [name for name in ("image", "video") if getattr(self, f"{name}s") is not None]
        if self.boxes:
            return "image"
        if self.span in ("image", "video"):
            return self.span
        return given[0] if len(given) == 1 else ""

    def check_prompt(self, counts: Mapping[str, int], *, prefix: str = "") -> None:
        """ValueError for a picture or video that a prompt with some does not have.

        counts: vLLM's modality -> how many of them.
        """
        for name in ("image", "video"):
            text, count = getattr(self, f"{name}s"), counts.get(name, 0)
            if text is not None and count and max(numbers_in(text)) >= count:
                raise BadParameter(
                    f"{prefix}{name}s is {text!r}, but the prompt has {name}s 0-{count - 1}",
                    f"{name}s",
                )
        self.picture(counts.get("image", 0), prefix=prefix)

    def picture(self, count: int, *, prefix: str = "") -> int:
        """Number of the picture that boxes are of, among so many; ValueError unless it is one."""
        chosen = range(count) if self.images is None else sorted(numbers_in(self.images))
        if self.boxes is not None and count and len(chosen) != 1:
            raise BadParameter(
                f"{prefix}boxes are of one picture, and the prompt has {count}: {prefix}images "
                "must name it",
                "boxes",
            )
        return chosen[0] if len(chosen) else 0

    def head_masks(self, num_layers: int) -> dict[int, int]:
        """Layer -> mask of the heads to steer in it, bit h for head h, `heads.EVERY` for all."""
        if self.heads is not None:
            return parse_heads(self.heads)
        layers = range(num_layers) if self.layers is None else numbers_in(self.layers)
        return dict.fromkeys(layers, EVERY)

    def check_model(self, num_layers: int, num_heads: int, *, prefix: str = "") -> None:
        """ValueError for layers, or query heads of one, that the model does not have."""
        if self.layers is not None:
            _layers_of(self, "layers", num_layers, prefix)
        if self.heads is not None:
            check_heads(parse_heads(self.heads), num_layers, num_heads, f"{prefix}heads")
        self.map_layers(num_layers, prefix=prefix)

    def map_layers(self, num_layers: int, *, prefix: str = "") -> list[int]:
        """Indices of the captured layers, ascending; ValueError for one >= num_layers."""
        if self.maps is None:
            return []
        if self.maps == "all":
            return list(range(num_layers))
        return sorted(_layers_of(self, "maps", num_layers, prefix))


def _layers_of(params: SteeringParams, field: str, num_layers: int, prefix: str) -> frozenset[int]:
    text = getattr(params, field)
    chosen = numbers_in(text)
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
    args = sampling_params.extra_args or {}
    found = (OPTION_TOKENS, POSITIONS)
    return SteeringParams.from_flat({k: v for k, v in args.items() if k not in found})


def positions_of(sampling_params: Any, mm_features: Sequence[Any]) -> Any:
    """[P] int64, ascending: prompt positions that a request admission has let in steers towards."""
    from adaptvis_vllm.steering.span import image_positions  # not light

    text = (sampling_params.extra_args or {}).get(POSITIONS)
    if text is not None:
        return read_positions(text)
    params = completed(sampling_params)
    assert params is not None
    return image_positions(mm_features, **params.pictures)


def option_tokens(sampling_params: Any) -> Tokens | None:
    """The tokens of a request's options, which admission found; None if it has none."""
    text = (sampling_params.extra_args or {}).get(OPTION_TOKENS)
    return None if text is None else read_tokens(text)


def AdaptVis(
    alpha_low: float | None = None,
    alpha_high: float | None = None,
    threshold: float | None = None,
    *,
    preset: str | None = None,
    **others: Any,
) -> SteeringParams:
    """Adaptive steering; all three numbers, or a preset that supplies what is left out.

    others: further fields of `SteeringParams`, by name.
    """
    return SteeringParams(
        "adaptive",
        alpha_low=alpha_low,
        alpha_high=alpha_high,
        threshold=threshold,
        preset=preset,
        **others,
    )


def ScalingVis(
    alpha: float | None = None, *, preset: str | None = None, **others: Any
) -> SteeringParams:
    """Steering with one alpha, given or a preset's. others: as of `AdaptVis`."""
    return SteeringParams("scaling", alpha, preset=preset, **others)


def Candidates(alphas: Sequence[float], **others: Any) -> SteeringParams:
    """No steering, and the best first token under each alpha in the report. others: as of
    `AdaptVis`."""
    return SteeringParams("candidates", candidates=tuple(alphas), **others)


def Off(
    *, span: str = "embeddings", maps: str | None = None, maps_tokens: int = 0
) -> SteeringParams:
    """No steering, whatever the server's default."""
    return SteeringParams("off", span=span, maps=maps, maps_tokens=maps_tokens)
