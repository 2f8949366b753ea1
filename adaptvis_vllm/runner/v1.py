"""Model Runner V1 (`vllm.v1.worker.gpu_model_runner.GPUModelRunner`; the CPU's default)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.config import CUDAGraphMode

from adaptvis_vllm.runner.install import make_steering


def initialize_kv_cache(original: Callable[..., Any]) -> Callable[..., Any]:
    """The model and its attention layers exist now: wrap them."""

    def initialize_kv_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.adaptvis = make_steering(self.vllm_config, self.device)
        self.cudagraph_dispatcher.adaptvis = self.adaptvis

    return initialize_kv_cache


def execute_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Plan the step, run it, see that every layer was steered."""

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        steering = self.adaptvis
        if steering is None:
            return original(self, scheduler_output, *args, **kwargs)
        steering.begin_step(scheduler_output)
        result = original(self, scheduler_output, *args, **kwargs)
        steering.end_forward()
        return result

    return execute_model


def graph_dispatch(original: Callable[..., Any]) -> Callable[..., Any]:
    """A step with a steered row leaves FULL CUDA graphs, whose replay runs no Python."""

    def dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering = getattr(self, "adaptvis", None)
        if steering is not None and steering.plan is not None and steering.plan.steers:
            kwargs["invalid_modes"] = {*(kwargs.get("invalid_modes") or ()), CUDAGraphMode.FULL}
        return original(self, *args, **kwargs)

    return dispatch


def prepare_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Rows of the batch are known now; a probe's sampled token is to be discarded."""

    def _prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        steering = self.adaptvis
        if steering is not None and steering.plan is not None:
            index = self.input_batch.req_id_to_index
            num_reqs = self.input_batch.num_reqs
            steering.locate(index, self.query_start_loc.np[: num_reqs + 1])
            if steering.plan.probes:
                for request in steering.plan.probes:
                    self.discard_request_mask.np[index[request.req_id]] = True
                self.discard_request_mask.copy_to_gpu(num_reqs)
        return result

    return _prepare_inputs


def sample(original: Callable[..., Any]) -> Callable[..., Any]:
    """Take the confidence before the sampler changes the logits.

    With drafts in the step a request has a row for each of them; its last one follows them.
    """

    def _sample(
        self: Any, logits: Any, spec_decode_metadata: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.adaptvis is not None:
            last = spec_decode_metadata and spec_decode_metadata.bonus_logits_indices
            self.adaptvis.observe(logits, last)
        return original(self, logits, spec_decode_metadata, *args, **kwargs)

    return _sample


def sample_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """Send confidences and alphas along; on a CPU, spare the generators of discarded rows.

    A row whose token is discarded must not advance a seeded request's generator. vLLM winds
    it back by an offset, which CPU generators do not have (there any seeded prompt of more
    than one chunk stops vLLM 0.32), so such rows sample without their generator.
    """

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        held = {}
        if generators and self.device.type == "cpu":
            discarded = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]
            held = {i: generators.pop(i) for i in discarded.tolist() if i in generators}
        output = original(self, *args, **kwargs)
        generators.update(held)
        return output if self.adaptvis is None else self.adaptvis.end_sampling(output)

    return sample_tokens


def get_prompt_logprobs_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    """Finished prompt logprobs wait for the step that samples."""

    def _get_prompt_logprobs_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = original(self, *args, **kwargs)
        return results if self.adaptvis is None else self.adaptvis.hold_prompt_logprobs(results)

    return _get_prompt_logprobs_dict
