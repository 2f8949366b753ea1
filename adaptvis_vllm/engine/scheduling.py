"""The engine core's part: room in a step, block hashes, the report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptvis_vllm.engine.compat import steerable_model
from adaptvis_vllm.engine.mapping import CARRIER as MAPS
from adaptvis_vllm.steering.defaults import ROWS, max_candidates
from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.params import SteeringParams, completed
from adaptvis_vllm.steering.report import (
    CARRIER,
    MODE_CANDIDATES,
    MODE_OFF,
    Report,
    candidate,
    nothing_to_steer,
)
from adaptvis_vllm.steering.span import has_positions

ROOM = "adaptvis_room"  # on vLLM's SchedulerConfig: rows added to its max_num_batched_tokens


@dataclass
class RequestSteering:
    """Steering of one request in the engine core."""

    params: SteeringParams
    last: int  # n, the last prompt position
    image: bool  # whether the prompt has image positions
    reported: bool = False
    confidence: float | None = None
    alpha: float | None = None
    candidates: list[dict[str, Any]] = field(default_factory=list)
    confidences: dict[str, float] | None = None
    option: str | None = None
    maps: list[bytes] = field(default_factory=list)  # pieces that are not yet on their way

    @property
    def active(self) -> bool:
        """Whether keys and values from position n on are its own."""
        return self.image and self.params.steers

    def take(self, result: Sequence[Any], stops: Container[int | None]) -> None:
        """The worker's, see `StepPlan.results`. stops: token ids that end an answer."""
        if self.params.options is not None:
            *result, best = result
            self.option = self.params.options[best]
        if self.params.mode == "scaling":
            return  # it had no choice, see `SteeredRequest.chooses`
        if self.params.candidates is None:
            self._take_choice(*result)
            return
        self.confidences = dict(zip(CONFIDENCES, result[2], strict=True))
        self.confidence = self.confidences[self.params.confidence]
        self.candidates = [
            candidate(alpha, token, None, probability, token in stops)
            for alpha, token, probability in zip(
                self.params.candidates, result[0], result[1], strict=True
            )
        ]

    def _take_choice(self, confidence: float, alpha: float) -> None:
        """alpha, a float32 in the worker, as the request spelt it."""
        low, high = self.params.alpha_low, self.params.alpha_high
        assert low is not None
        assert high is not None
        self.confidence = confidence
        self.alpha = low if abs(low - alpha) < abs(high - alpha) else high

    def report(self) -> Report:
        if self.params.mode == "off":
            return Report("off", reason=MODE_OFF)
        if not self.image:
            reason = nothing_to_steer(self.params.kind)
            return Report(self.params.mode, reason=reason, candidates=[])
        if self.params.mode == "candidates":
            return Report(
                "candidates",
                self.confidence,
                reason=MODE_CANDIDATES,
                candidates=self.candidates,
                confidences=self.confidences,
                option=self.option,
            )
        if self.params.mode == "scaling":
            return Report("scaling", alpha=self.params.alpha, steered=True)
        return Report("adaptive", self.confidence, self.alpha, steered=True, option=self.option)

    def carried(self, kv_transfer_params: dict[str, Any] | None) -> dict[str, Any]:
        """vLLM's parameters with the report, the first time, and maps that are there, on their way
        to the front end."""
        ours: dict[str, Any] = {}
        if not self.reported:
            self.reported = True
            report = self.report()
            ours[CARRIER] = {**report.as_dict(), "branch": report.branch(self.params)}
        if self.maps:
            ours[MAPS], self.maps = self.maps, []
        return {**(kv_transfer_params or {}), **ours}


def steering_of(request: Any) -> RequestSteering | None:
    """Of a vLLM `Request`, read once from the parameters that admission made complete."""
    try:
        return request.adaptvis
    except AttributeError:
        pass
    params = completed(request.sampling_params)
    request.adaptvis = params and RequestSteering(
        params,
        request.num_prompt_tokens - 1,
        has_positions(request.mm_features, **params.pictures),
    )
    return request.adaptvis


def make_room(original: Callable[..., Any], self: Any) -> None:
    """Wraps `VllmConfig._set_compile_ranges`: room for side rows, two a request or as many as it
    may have candidates.

    The worker's buffers are larger; what was derived from their size before, CUDA graph sizes
    among it, is as it was, and `keep_budget` lets the scheduler fill a step as before.
    """
    config, model = self.scheduler_config, self.model_config
    # A configuration is checked again where it is copied.
    if model is not None and steerable_model(model) and not hasattr(config, ROOM):
        setattr(config, ROOM, _side_rows(self) * config.max_num_seqs)
        if config.max_num_scheduled_tokens is None:
            config.max_num_scheduled_tokens = config.max_num_batched_tokens
        config.max_num_batched_tokens += getattr(config, ROOM)
    original(self)


def _side_rows(vllm_config: Any) -> int:
    """Of a request at most. Wrong options are admission's to refuse, in a sentence of its own: here
    pydantic would put its words around it."""
    try:
        return max(ROWS, max_candidates(vllm_config))
    except ValueError:
        return ROWS


def keep_budget(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Wraps `Scheduler.__init__`: it knows nothing of the room for side rows."""
    original(self, *args, **kwargs)
    room = getattr(self.scheduler_config, ROOM, 0)
    if room:
        self.scheduler_config = copy.copy(self.scheduler_config)
        self.scheduler_config.max_num_batched_tokens -= room


def key_steered_blocks(
    original: Callable[..., Any],
    request: Any,
    start_token_idx: int,
    end_token_idx: int,
    start_mm_idx: int,
) -> tuple[tuple[Any, ...] | None, int]:
    """Wraps `generate_block_hash_extra_keys`.

    The block that holds position n, and by the hash chain every later one, is keyed by the
    steering and by the request, so only the request itself reads it, after a preemption.
    No one else could use it: an equal prompt recomputes n anyway, and in a longer prompt
    the same position is not the last one and not steered.
    """
    keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
    steering = steering_of(request)
    if steering is not None and steering.active and end_token_idx > steering.last:
        own = request.request_id
        keys = (*(keys or ()), ("adaptvis", steering.params.key(), own))
    return keys, next_mm_idx


def exchange_results(
    original: Callable[..., Any], self: Any, scheduler_output: Any, model_runner_output: Any
) -> Any:
    """Wraps `Scheduler.update_from_output`: what it chose and found comes from the worker, and
    reports leave with the first token. The front end keeps them: it is there that a stop
    string ends a request, and then there is no last output from here.
    """
    for req_id, result in getattr(model_runner_output, "adaptvis", {}).items():
        request = self.requests.get(req_id)
        steering = request and steering_of(request)
        if steering:
            params = request.sampling_params
            steering.take(result, {params.eos_token_id, *(params.stop_token_ids or ())})
    pieces = getattr(model_runner_output, "adaptvis_maps", {})
    waiting = {}
    for req_id in scheduler_output.num_scheduled_tokens:
        request = self.requests.get(req_id)
        steering = request and steering_of(request)
        if steering:
            steering.maps += pieces.get(req_id, ())
            if steering.maps or not steering.reported:
                waiting[req_id] = steering
    results = original(self, scheduler_output, model_runner_output)
    if waiting:
        for outputs in results.values():
            for output in outputs.outputs:
                steering = waiting.get(output.request_id)
                if steering is not None and output.new_token_ids:
                    output.kv_transfer_params = steering.carried(output.kv_transfer_params)
    return results
