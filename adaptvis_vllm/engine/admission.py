"""Admission in the front end: defaults, validation, and what cannot be served at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError

from adaptvis_vllm.engine import mapping, metrics
from adaptvis_vllm.engine.bounds import check_completed, check_sampling
from adaptvis_vllm.engine.compat import refuse_config, steerable_model
from adaptvis_vllm.files.urls import is_remote, reason
from adaptvis_vllm.steering.boxes import held_in, write_positions
from adaptvis_vllm.steering.defaults import OPTION, check_candidates, operator_options
from adaptvis_vllm.steering.first_tokens import first_tokens, write_tokens
from adaptvis_vllm.steering.params import OPTION_TOKENS, POSITIONS, PREFIX, SteeringParams
from adaptvis_vllm.steering.words import BadParameter, show, word

_KNOWN_OPTIONS = 4096  # lists of options whose tokens are kept


class Refused(VLLMValidationError, ValueError):
    """HTTP 400 in a server (other ValueErrors are 500 there), a ValueError offline."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # vLLM's would repeat the parameter


class Unloadable(VLLMUnprocessableEntityError, ValueError):
    """HTTP 422 in a server, a ValueError offline: a file that cannot be had where it should be."""

    __str__ = Exception.__str__


def refused(error: ValueError) -> Refused:
    """The error that ends a request, counted."""
    field = getattr(error, "field", "")
    metrics.count_refused(field)
    return Refused(str(error), parameter=PREFIX + field if field else None)


class Admission:
    """Resolves the parameters of every request of one engine.

    vllm_config: the engine's. ValueError for defaults or a configuration that cannot work.
    """

    def __init__(self, vllm_config: Any) -> None:
        metrics.get()
        self.config = vllm_config
        self.tokenizer: Callable[[], Any] = lambda: None  # vLLM's has none yet
        self._tokens: dict[tuple[str, ...], str] = {}
        options = operator_options(vllm_config)
        self.defaults, self.max_candidates = options.params, options.max_candidates
        self.max_map_bytes = options.max_map_bytes
        model_config = vllm_config.model_config
        self.steerable = steerable_model(model_config)
        if self.steerable:
            reason = refuse_config(vllm_config)
            if reason:
                raise ValueError(reason)
            self.num_layers = model_config.get_total_num_hidden_layers()
            ranks = vllm_config.parallel_config
            own = model_config.get_num_attention_heads(ranks)
            self.num_heads = own * ranks.tensor_parallel_size
            if self.defaults is not None:
                self.defaults.check_model(self.num_layers, self.num_heads)
                self._check_drafts(self.defaults, "")

    def resolve(
        self, extra_args: Mapping[str, Any] | None, *, resumable: bool = False
    ) -> SteeringParams | None:
        """Complete and checked parameters of one request; None if it asks for nothing.

        extra_args: of vLLM's `SamplingParams`. Refused names the field.
        """
        try:
            params = SteeringParams.from_flat(extra_args, defaults=self.defaults)
            if params is None or not self.steerable:
                return params
            params.check_model(self.num_layers, self.num_heads, prefix=PREFIX)
            check_candidates(params, self.max_candidates, PREFIX)
            self.tokens_of(params.options, PREFIX)
            self._check_drafts(params, PREFIX)
        except ValueError as error:
            raise refused(error) from None
        for field, none in (("mode", "off"), ("maps", None)) if resumable else ():
            given = getattr(params, field)
            if given != none:
                raise refused(
                    BadParameter(
                        f"{PREFIX}{field} is {given!r}, but a request with streaming input has no "
                        f"fixed last prompt token; only {none or 'none'!r} is possible",
                        field,
                    )
                )
        return params

    def _check_drafts(self, params: SteeringParams, prefix: str) -> None:
        if params.maps_tokens and self.config.speculative_config is not None:
            raise BadParameter(
                f"{prefix}maps_tokens must be 0 with speculative decoding, not "
                f"{params.maps_tokens}: a draft's row is not yet a generated token's",
                "maps_tokens",
            )
        if params.steers_generated and self.config.speculative_config is not None:
            raise BadParameter(
                f"{prefix}rows must be 'last' with speculative decoding, not {params.rows!r}: a "
                "draft's row is not yet a generated token's",
                "rows",
            )

    def tokens_of(self, options: tuple[str, ...] | None, prefix: str = "") -> str | None:
        """The tokens of a request's options, as text; BadParameter where one has no own ones."""
        if options is None or not self.steerable:
            return None
        known = self._tokens.get(options)
        if known is None:
            found = first_tokens(self.tokenizer(), options, f"{prefix}options")
            if len(self._tokens) >= _KNOWN_OPTIONS:
                self._tokens.clear()
            known = self._tokens[options] = write_tokens(found)
        return known

    def check(self, params: Any) -> None:
        """Refused if vLLM's `SamplingParams` ask for what is not possible; pooling passes."""
        if hasattr(params, "extra_args") and hasattr(params, "max_tokens"):
            self.resolve(params.extra_args)
            with _named():
                check_sampling(params, self.config)

    def complete(self, request: Any, prompt: Any, processor: Callable[[], Any]) -> None:
        """Write the complete steering into a request's own `SamplingParams`, and prepare its maps.

        prompt, processor: as of `mapping.places_of`.
        """
        params = request.sampling_params
        steering = self.resolve(params.extra_args, resumable=request.resumable)
        if steering is not None:
            try:
                counts = Counter(feature.modality for feature in request.mm_features or ())
                steering.check_prompt(counts, prefix=PREFIX)
            except BadParameter as error:
                raise refused(error) from None
            given = params.extra_args or {}
            others = {k: v for k, v in given.items() if not k.startswith(PREFIX)}
            params.extra_args = others | steering.extra_args()
            tokens = self.tokens_of(steering.options, PREFIX)
            if tokens is not None:
                params.extra_args[OPTION_TOKENS] = tokens
            features = request.mm_features or []
            places = cache(lambda: mapping.places_of(prompt, features, processor))
            if steering.boxes is not None and self.steerable:
                self._place_boxes(request, steering, places)
            if steering.maps is not None and self.steerable:
                self._expect_maps(request, steering, places)
        with _named():
            check_completed(params, self.config)

    def _place_boxes(
        self, request: Any, steering: SteeringParams, places_of: Callable[[], Any]
    ) -> None:
        """Write the positions that lie in boxes into a request's parameters."""
        shown = [f for f in request.mm_features or () if f.modality in ("image", "video")]
        pictures = [number for number, f in enumerate(shown) if f.modality == "image"]
        if not pictures:
            return
        number = pictures[steering.picture(len(pictures))]
        places, sizes = places_of()
        assert steering.boxes is not None
        try:
            if isinstance(places, str):
                raise BadParameter(f"{PREFIX}boxes cannot be placed: {places}", "boxes")
            of_it = places.image == number
            held = held_in(places.boxes[of_it], steering.boxes)
            if not held.any():
                width, height = sizes[number]
                raise BadParameter(
                    f"{PREFIX}boxes hold the centre of no image position of the picture, which has "
                    f"{width} x {height} pixels",
                    "boxes",
                )
        except BadParameter as error:
            raise refused(error) from None
        request.sampling_params.extra_args[POSITIONS] = write_positions(
            places.positions[of_it][held]
        )

    def _expect_maps(
        self, request: Any, steering: SteeringParams, places_of: Callable[[], Any]
    ) -> None:
        try:
            mapping.expect(
                request,
                steering,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                max_bytes=self.max_map_bytes,
                places_of=places_of,
            )
        except BadParameter as error:
            raise refused(error) from None

    def refuse_beams(self) -> None:
        """Refused if the defaults steer: they would steer each step of a beam search."""
        if self.steerable:
            _refuse_beams(self.defaults, f"additional_config['{OPTION}'] ")


@contextmanager
def _named() -> Iterator[None]:
    """A bad one of vLLM's own parameters, as HTTP 400."""
    try:
        yield
    except BadParameter as error:
        raise Refused(str(error), parameter=error.field) from None


def check_engine(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    """Wraps `InputProcessor.__init__`."""
    self.adaptvis = Admission(vllm_config)
    original(self, vllm_config, *args, **kwargs)
    self.adaptvis.tokenizer = lambda: self.tokenizer
    if self.adaptvis.defaults is not None:
        self.adaptvis.tokens_of(self.adaptvis.defaults.options)


def check_request(
    original: Callable[..., Any], self: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wraps `InputProcessor._validate_params`, which every entrance passes first."""
    self.adaptvis.check(params)
    return original(self, params, *args, **kwargs)


def check_before_rendering(
    original: Callable[..., Any], self: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wraps `OfflineInferenceMixin._params_to_seq`: of a call with several prompts nothing is
    rendered, let alone queued, if one request's parameters are wrong."""
    admission = self.llm_engine.input_processor.adaptvis
    for one in params if isinstance(params, Sequence) else [params]:
        admission.check(one)
    return original(self, params, *args, **kwargs)


def check_early(
    original: Callable[..., Any],
    self: Any,
    prompt: Any,
    sampling_params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `AsyncLLM.generate`, an async generator: its own checks run with the first result,
    when a streamed response has already begun with HTTP 200."""
    self.input_processor.adaptvis.check(sampling_params)
    return original(self, prompt, sampling_params, *args, **kwargs)


async def check_body(
    original: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wraps `create_chat_completion`, `create_completion` and `create_responses`.

    vLLM renders a request's pictures before it looks at its parameters.
    """
    check_fields(request)
    admission = self.engine_client.input_processor.adaptvis
    params = admission.resolve(request.vllm_xargs)
    if getattr(request, "use_beam_search", False):
        admission.refuse_beams()
        if request.vllm_xargs:  # vLLM drops them
            _refuse_beams(params, PREFIX)
    if original.__name__ == "create_responses" and f"{PREFIX}maps" in (request.vllm_xargs or {}):
        message = f"{PREFIX}maps must be left out here: /v1/responses has no field for maps"
        raise refused(BadParameter(message, "maps"))
    return await original(self, request, *args, **kwargs)


def check_fields(request: Any) -> None:
    """Refuse fields of an HTTP request that would be lost on the way.

    vLLM ignores fields that it does not know: ours outside `vllm_xargs` would leave the
    request unsteered. Others' parameters must survive the way to the engine.
    """
    for key in request.model_extra or ():
        if key.lower().startswith(OPTION):
            raise refused(BadParameter(f"{word(key)} must be inside vllm_xargs"))
    for key, value in (request.vllm_xargs or {}).items():
        if not key.startswith(PREFIX):
            for item in (key, *(value if isinstance(value, list) else [value])):
                if not _sendable(item):
                    raise Refused(
                        f"{word(key)} must be Unicode text or fit 64 bits, not {show(item)}",
                        parameter=word(key),
                    )


async def refuse_media(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wraps `MediaConnector.fetch_image_async` and `fetch_video_async`.

    What is wrong with the file that a request names is no error of the server: HTTP 422 where
    another host has it, as vLLM answers where that host says 404, else 400. vLLM has tried such a
    host VLLM_MEDIA_FETCH_MAX_RETRIES times by then, each time for a bounded time.
    """
    try:
        return await original(self, *args, **kwargs)
    except Exception as error:  # decoders raise what they like
        parameter = "video_url" if "video" in original.__name__ else "image_url"
        url = args[0] if args else kwargs[parameter]
        named = f"{parameter} {url!r:.200}" if is_remote(url) else f"{parameter} {show(url)}"
        said = isinstance(error, VLLMUnprocessableEntityError)
        if said or (is_remote(url) and not isinstance(error, ValueError)):
            message = f"{named} cannot be loaded: {reason(error)}"
            raise Unloadable(message, parameter=parameter) from error
        raise Refused(f"{named}: {reason(error)}", parameter=parameter) from error


def process_pictures(
    original: Callable[..., Any],
    self: Any,
    prompt: Any,
    mm_data: Any,
    mm_uuids: Any,
    mm_processor_kwargs: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `BaseRenderer._process_multimodal`: that a prompt lacks a picture's placeholder is no
    error of the server; vLLM asserts that it does not. Maps want to know the pictures' sizes."""
    try:
        inputs = original(self, prompt, mm_data, mm_uuids, mm_processor_kwargs, *args, **kwargs)
        return mapping.keep_media(inputs, mm_data, mm_processor_kwargs)
    except (AssertionError, RuntimeError) as error:
        if not str(error).startswith(_NO_PLACEHOLDER):
            raise
        raise Refused(
            f"prompt must hold a placeholder for each picture and video: {error}",
            parameter="prompt",
        ) from error


_NO_PLACEHOLDER = ("Failed to apply prompt replacement", "Expected there to be")


def _sendable(item: Any) -> bool:
    """MessagePack takes Unicode text and integers of 64 bits."""
    if isinstance(item, int):
        return -(2**63) <= item < 2**64
    return str(item).encode(errors="ignore").decode() == str(item)


def refuse_beam_search(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wraps `beam_search`, online and offline: defaults would steer each of its steps."""
    engine = self.engine_client if hasattr(self, "engine_client") else self.llm_engine
    engine.input_processor.adaptvis.refuse_beams()
    return original(self, *args, **kwargs)


def _refuse_beams(params: SteeringParams | None, prefix: str) -> None:
    """Each step of a beam search is a request whose last prompt token is a generated one."""
    if params is not None and params.mode != "off":
        message = f"{prefix}mode is {params.mode!r}, but beam search cannot be steered"
        raise refused(BadParameter(message, "mode"))
    if params is not None and params.maps is not None:
        message = f"{prefix}maps is {params.maps!r}, but beam search has no attention maps"
        raise refused(BadParameter(message, "maps"))


def complete_request(
    original: Callable[..., Any],
    self: Any,
    request_id: str,
    prompt: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `InputProcessor.process_inputs`: the engine core gets complete parameters."""
    request = original(self, request_id, prompt, *args, **kwargs)
    if request.sampling_params is not None:
        self.adaptvis.complete(request, prompt, self.renderer.get_mm_processor)
    return request
