"""Model Runner V2 (`vllm.v1.worker.gpu.model_runner.GPUModelRunner`; the GPU's default)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from vllm.config import CUDAGraphMode

from adaptvis_vllm.runner.install import make_steering


def initialize_kv_cache(original: Callable[..., Any]) -> Callable[..., Any]:
    """The model, its attention layers and the sampler exist now."""

    def initialize_kv_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.adaptvis = make_steering(self.vllm_config, self.device)
        if self.sampler is not None:
            self.sampler.adaptvis = self.adaptvis
            self.prompt_logprobs_worker.adaptvis = self.adaptvis
        if self.rejection_sampler is not None:
            self.rejection_sampler.adaptvis = self.adaptvis
        self.cudagraph_manager.adaptvis = self.adaptvis

    return initialize_kv_cache


def execute_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Plan the step, run it, see that every layer was steered."""

    def execute_model(
        self: Any,
        scheduler_output: Any,
        intermediate_tensors: Any = None,
        dummy_run: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        steering = getattr(self, "adaptvis", None)
        if steering is None or dummy_run:
            return original(
                self, scheduler_output, intermediate_tensors, dummy_run, *args, **kwargs
            )
        steering.begin_step(scheduler_output)
        result = original(self, scheduler_output, intermediate_tensors, dummy_run, *args, **kwargs)
        steering.end_forward()
        return result

    return execute_model


def graph_dispatch(original: Callable[..., Any]) -> Callable[..., Any]:
    """A step with a steered row leaves FULL CUDA graphs.

    Their replay runs no Python, hence no steering, even where one prompt token is left and
    the step looks like a decode. Leaving costs one eager or piecewise step per request;
    capturing the kernel would put its launches into every decode step of everybody.
    """

    def dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering = getattr(self, "adaptvis", None)
        if steering is None or steering.plan is None or not steering.plan.steers:
            return original(self, *args, **kwargs)
        if not hasattr(self, "adaptvis_candidates"):  # they do not change after its __init__
            self.adaptvis_candidates = {
                key: [d for d in descriptors if d.cg_mode != CUDAGraphMode.FULL]
                for key, descriptors in self._candidates.items()
            }
        without_full = copy.copy(self)
        without_full._candidates = self.adaptvis_candidates
        return original(without_full, *args, **kwargs)

    return dispatch


def prepare_attn(original: Callable[..., Any]) -> Callable[..., Any]:
    """Rows of the batch are known now."""

    def prepare_attn(self: Any, input_batch: Any) -> Any:
        result = original(self, input_batch)
        steering = getattr(self, "adaptvis", None)
        if steering is not None and steering.plan is not None:
            index = {req_id: i for i, req_id in enumerate(input_batch.req_ids)}
            steering.locate(index, input_batch.query_start_loc_np)
        return result

    return prepare_attn


def sampler_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Confidence from the raw logits; a probe samples nothing and takes its token back.

    `num_rejected` 1 makes `post_update` rewind the device's count of computed tokens. With
    drafts in the step a request has a row of logits for each; its last one follows them.
    """

    def __call__(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        steering = getattr(self, "adaptvis", None)
        if steering is None or steering.sampling is None:
            return original(self, logits, input_batch, *args, **kwargs)
        drafts = input_batch.num_draft_tokens
        steering.observe(logits, input_batch.cu_num_logits[1:] - 1 if drafts else None)
        output = original(self, logits, input_batch, *args, **kwargs)
        lines = steering.sampling.probe_lines
        if lines is not None:
            output.num_sampled.index_fill_(0, lines, 0)
            output.num_rejected.index_fill_(0, lines, 1)
        return output

    return __call__


def sample_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """Send confidences and alphas along with the sampled tokens."""

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        steering = getattr(self, "adaptvis", None)
        return output if steering is None else steering.end_sampling(output)

    return sample_tokens


def compute_prompt_logprobs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Finished prompt logprobs wait for the step that samples."""

    def compute_prompt_logprobs(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = original(self, *args, **kwargs)
        steering = getattr(self, "adaptvis", None)
        return results if steering is None else steering.hold_prompt_logprobs(results)

    return compute_prompt_logprobs
