"""Model Runner V2 (`vllm.v1.worker.gpu.model_runner.GPUModelRunner`; the GPU's default)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from vllm.config import CUDAGraphMode

from adaptvis_vllm.engine.runner.install import make_steering


def initialize_kv_cache(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """The model and its attention layers exist now."""
    original(self, *args, **kwargs)
    self.adaptvis = make_steering(self.vllm_config, self.device, self.model)
    self.cudagraph_manager.adaptvis = self.adaptvis
    if self.adaptvis is not None:
        _fill_inputs(self.model_state, self.model, self.adaptvis)


def _fill_inputs(state: Any, model: Any, steering: Any) -> None:
    """Side rows in the model's inputs, which lie in buffers that graphs read too."""
    if hasattr(state, "adaptvis"):  # the cache is made a second time
        state.adaptvis = steering
        return
    state.adaptvis = steering
    embeddings, inputs = state.prepare_inputs_embeds, state.prepare_inputs

    def prepare_inputs_embeds(*args: Any, **kwargs: Any) -> Any:
        rows = embeddings(*args, **kwargs)
        state.adaptvis.copy_rows(rows)
        return rows

    def prepare_inputs(input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        more = inputs(input_batch, *args, **kwargs)
        positions = more.get("positions", input_batch.positions)
        state.adaptvis.copy_rows(input_batch.input_ids, positions)
        state.adaptvis.before_forward(model, input_batch.is_padding)
        return more

    state.prepare_inputs_embeds, state.prepare_inputs = prepare_inputs_embeds, prepare_inputs


def execute_model(
    original: Callable[..., Any],
    self: Any,
    scheduler_output: Any,
    intermediate_tensors: Any = None,
    dummy_run: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Plan the step, run it, see that every layer was steered."""
    steering = getattr(self, "adaptvis", None)
    if steering is None or dummy_run:
        return original(self, scheduler_output, intermediate_tensors, dummy_run, *args, **kwargs)
    steering.begin_step(scheduler_output)
    result = original(self, scheduler_output, intermediate_tensors, dummy_run, *args, **kwargs)
    if steering.extra_rows:
        steering.after_forward(self.execute_model_state.hidden_states)
    steering.end_forward()
    return result


def graph_dispatch(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """A step with a steered row leaves FULL CUDA graphs, whose replay runs no Python."""
    steering = getattr(self, "adaptvis", None)
    if steering is None or steering.plan is None:
        return original(self, *args, **kwargs)
    if not hasattr(self, "adaptvis_candidates"):  # they do not change after its __init__
        self.adaptvis_candidates = {
            key: [d for d in descriptors if d.cg_mode != CUDAGraphMode.FULL]
            for key, descriptors in self._candidates.items()
        }
    without_full = copy.copy(self)
    without_full._candidates = self.adaptvis_candidates
    return original(without_full, *args, **kwargs)


def choose_graph(
    original: Callable[..., Any],
    cudagraph_manager: Any,
    num_reqs: int,
    num_tokens: int,
    uniform_token_count: int | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `dispatch_cg_and_sync_dp`: side rows lie in what the model takes for padding, so they
    are tokens to graphs and to other data-parallel ranks, and a batch with them no decode."""
    steering = getattr(cudagraph_manager, "adaptvis", None)
    extra = 0 if steering is None else steering.extra_rows
    if extra:
        num_tokens, uniform_token_count = num_tokens + extra, None
        kwargs |= {"max_query_len": None, "uniform_decode": False}
    return original(cudagraph_manager, num_reqs, num_tokens, uniform_token_count, *args, **kwargs)


def prepare_attn(original: Callable[..., Any], self: Any, input_batch: Any) -> Any:
    """Rows of the batch are known now."""
    result = original(self, input_batch)
    steering = getattr(self, "adaptvis", None)
    if steering is not None and steering.plan is not None:
        index = {req_id: i for i, req_id in enumerate(input_batch.req_ids)}
        starts = input_batch.query_start_loc_np[: input_batch.num_reqs + 1]
        steering.locate(index, starts)
    return result


def sample_tokens(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Send confidences and alphas along with the sampled tokens."""
    output = original(self, *args, **kwargs)
    steering = getattr(self, "adaptvis", None)
    return output if steering is None else steering.end_sampling(output)
