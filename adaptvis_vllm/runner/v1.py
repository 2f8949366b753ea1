"""Model Runner V1 (`vllm.v1.worker.gpu_model_runner.GPUModelRunner`; the CPU's default)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptvis_vllm.runner.install import make_steering


def initialize_kv_cache(original: Callable[..., Any]) -> Callable[..., Any]:
    """The model and its attention layers exist now: wrap them."""

    def initialize_kv_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.adaptvis = make_steering(self.vllm_config, self.device)

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
    """Take the confidence before the sampler changes the logits."""

    def _sample(self: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        if self.adaptvis is not None:
            self.adaptvis.observe(logits)
        return original(self, logits, *args, **kwargs)

    return _sample


def sample_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """A probe must not advance the random generator of a seeded request."""

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering = self.adaptvis
        if steering is None or steering.sampling is None:
            return original(self, *args, **kwargs)
        generators, index = self.input_batch.generators, self.input_batch.req_id_to_index
        lines = [index[request.req_id] for request in steering.sampling.probes]
        held = {line: generators.pop(line) for line in lines if line in generators}
        try:
            output = original(self, *args, **kwargs)
        finally:
            generators.update(held)
        return steering.end_sampling(output)

    return sample_tokens


def get_prompt_logprobs_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    """Finished prompt logprobs wait for the step that samples."""

    def _get_prompt_logprobs_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = original(self, *args, **kwargs)
        return results if self.adaptvis is None else self.adaptvis.hold_prompt_logprobs(results)

    return _get_prompt_logprobs_dict
