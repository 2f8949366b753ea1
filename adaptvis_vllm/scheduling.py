"""The engine core's part: rewind after the probe, block hashes, the report.

The scheduler counts one computed token less after a probe, so that the request stays an
ordinary prefill for one more step: position n alone, which overwrites K and V of n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaptvis_vllm.params import SteeringParams
from adaptvis_vllm.report import CARRIER, MODE_OFF, Report, nothing_to_steer
from adaptvis_vllm.span import has_positions


@dataclass
class RequestSteering:
    """Steering of one request in the engine core."""

    params: SteeringParams
    last: int  # n, the last prompt position
    image: bool  # whether the prompt has image positions
    probed: bool = False
    steered: bool = False
    reported: bool = False
    lost_probes: int = 0  # probes whose steer step a preemption took away
    confidence: float | None = None
    alpha: float | None = None

    @property
    def active(self) -> bool:
        return self.image and self.params.mode != "off"

    def take(self, confidence: float, alpha: float) -> None:
        """The worker's result; alpha, a float32 there, as the request spelt it."""
        low, high = self.params.alpha_low, self.params.alpha_high
        assert low is not None
        assert high is not None
        self.confidence = confidence
        self.alpha = low if abs(low - alpha) < abs(high - alpha) else high

    def report(self) -> Report:
        if self.params.mode == "off":
            return Report("off", reason=MODE_OFF)
        if not self.image:
            return Report(self.params.mode, reason=nothing_to_steer(self.params.span))
        if self.params.mode == "scaling":
            return Report("scaling", alpha=self.params.alpha, steered=True)
        return Report("adaptive", self.confidence, self.alpha, steered=True)

    def carried(self, kv_transfer_params: dict[str, Any] | None) -> dict[str, Any]:
        """vLLM's parameters with the report, on their way to the front end."""
        report = self.report()
        carried = {**report.as_dict(), "branch": report.branch(self.params)}
        return {**(kv_transfer_params or {}), CARRIER: carried}


def steering_of(request: Any) -> RequestSteering | None:
    """Of a vLLM `Request`, read once from the parameters that admission made complete."""
    try:
        return request.adaptvis
    except AttributeError:
        pass
    params = None
    if request.sampling_params is not None:
        params = SteeringParams.from_flat(request.sampling_params.extra_args)
    request.adaptvis = params and RequestSteering(
        params,
        request.num_prompt_tokens - 1,
        has_positions(request.mm_features, params.span),
    )
    return request.adaptvis


def rewind_probes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Scheduler._update_after_schedule`."""

    def _update_after_schedule(self: Any, scheduler_output: Any) -> None:
        scheduled = scheduler_output.num_scheduled_tokens
        probes = []
        for req_id, count in scheduled.items():
            request = self.requests[req_id]
            steering = steering_of(request)
            if steering is None or steering.steered or not steering.active:
                continue
            start = request.num_computed_tokens
            if not start <= steering.last < start + count:
                continue
            _drop_placeholders(scheduler_output, req_id)
            if steering.params.mode == "adaptive" and not steering.probed:
                steering.probed = True
                probes.append(request)
            else:
                steering.steered = True
        for request in probes:
            scheduled[request.request_id] -= 1
        original(self, scheduler_output)
        for request in probes:
            scheduled[request.request_id] += 1
            request.num_in_flight_tokens += 1

    return _update_after_schedule


def _drop_placeholders(scheduler_output: Any, req_id: str) -> None:
    """Take back the padding of a prompt whose last token arrives alone.

    With speculative decoding vLLM pads such a first step to the length of a decode with
    drafts; a rewound step has no sampled token to reject them by.
    """
    padding = scheduler_output.scheduled_spec_decode_tokens.pop(req_id, ())
    scheduler_output.num_scheduled_tokens[req_id] -= len(padding)
    scheduler_output.total_num_scheduled_tokens -= len(padding)


def key_steered_blocks(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `generate_block_hash_extra_keys`.

    The block that holds position n, and by the hash chain every later one, is keyed by the
    steering and by the request, so only the request itself reads it, after a preemption.
    No one else could use it: an equal prompt recomputes n anyway, and in a longer prompt
    the same position is not the last one and not steered.
    """

    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        steering = steering_of(request)
        if steering is not None and steering.active and end_token_idx > steering.last:
            own = f"{request.request_id}/{steering.lost_probes}"
            keys = (*(keys or ()), ("adaptvis", steering.params.key(), own))
        return keys, next_mm_idx

    return generate_block_hash_extra_keys


def drop_probed_block(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Scheduler._preempt_request`.

    Preempted between probe and steer, a request leaves a cached block with unsteered K and
    V of position n behind: its hash is given up, for this request too.
    """

    def _preempt_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        original(self, request, *args, **kwargs)
        steering = steering_of(request)
        if steering is not None and steering.probed and not steering.steered:
            steering.lost_probes += 1
            if request.block_hashes:
                del request.block_hashes[steering.last // self.hash_block_size :]
                request.update_block_hashes()

    return _preempt_request


def exchange_results(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Scheduler.update_from_output`: confidences and alphas come from the worker, and
    reports leave with the first token. The front end keeps them: it is there that a stop
    string ends a request, and then there is no last output from here.
    """

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        for req_id, result in getattr(model_runner_output, "adaptvis", {}).items():
            request = self.requests.get(req_id)
            steering = request and steering_of(request)
            if steering:
                steering.take(*result)
        silent = {}
        for req_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(req_id)
            steering = request and steering_of(request)
            if steering and not steering.reported:
                silent[req_id] = steering
        results = original(self, scheduler_output, model_runner_output)
        if silent:
            for outputs in results.values():
                for output in outputs.outputs:
                    steering = silent.get(output.request_id)
                    if steering is not None and output.new_token_ids:
                        steering.reported = True
                        output.kv_transfer_params = steering.carried(output.kv_transfer_params)
        return results

    return update_from_output
