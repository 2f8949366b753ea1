"""Model Runner V1 (`vllm.v1.worker.gpu_model_runner.GPUModelRunner`; the CPU's default)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context

from adaptvis_vllm.engine.plan import StepPlan
from adaptvis_vllm.engine.runner.install import make_steering


def initialize_kv_cache(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """The model and its attention layers exist now: wrap them."""
    original(self, *args, **kwargs)
    self.adaptvis = make_steering(self.vllm_config, self.device, self.get_model())
    self.cudagraph_dispatcher.adaptvis = self.adaptvis


def execute_model(
    original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """Plan the step, run it, see that every layer was steered."""
    steering = self.adaptvis
    if steering is None:
        return original(self, scheduler_output, *args, **kwargs)
    steering.begin_step(scheduler_output)
    result = original(self, scheduler_output, *args, **kwargs)
    steering.end_forward()
    return result


def graph_dispatch(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """A step with a steered row leaves FULL CUDA graphs, whose replay runs no Python."""
    steering = getattr(self, "adaptvis", None)
    if steering is not None and steering.plan is not None:
        kwargs["invalid_modes"] = {*(kwargs.get("invalid_modes") or ()), CUDAGraphMode.FULL}
    return original(self, *args, **kwargs)


def set_active_loras(
    original: Callable[..., Any],
    self: Any,
    prompt_lora_mapping: Any,
    token_lora_mapping: Any,
    lora_requests: Any,
    *args: Any,
    **kw: Any,
) -> Any:
    """Side rows have the adapter of their request, from the model's forward pass to their logits.

    Not before: token embeddings may have an adapter too, and are looked up for the batch alone.
    """
    steering = getattr(self, "adaptvis", None)
    kind = args[0] if args else kw.get("mapping_type")
    if steering is not None and (kind is None or kind.name == "LANGUAGE"):

        def switch(plan: StepPlan | None, rows: slice | None = None) -> None:
            """To a plan's side rows, and logits of the batch and the first ones; rows: and logits
            of these alone. With None for a plan, back to the batch."""
            if plan is None:
                original(self, prompt_lora_mapping, token_lora_mapping, lora_requests)
                return
            assert plan.base_np is not None
            counts = [len(request.alphas) for request in plan.sides]
            tail = [token_lora_mapping[i] for i in plan.base_np.repeat(counts)]
            heads = (*prompt_lora_mapping, *tail[: plan.with_batch])
            if rows is not None:
                heads = tuple(tail[rows])
            original(self, heads, (*token_lora_mapping, *tail), lora_requests)

        steering.switch_loras = switch
    return original(self, prompt_lora_mapping, token_lora_mapping, lora_requests, *args, **kw)


def prepare_inputs(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Rows of the batch are known now."""
    result = original(self, *args, **kwargs)
    steering = self.adaptvis
    if steering is not None and steering.plan is not None:
        num_reqs = self.input_batch.num_reqs
        steering.locate(self.input_batch.req_id_to_index, self.query_start_loc.np[: num_reqs + 1])
    return result


def determine_padding(
    original: Callable[..., Any], self: Any, num_tokens: int, **kwargs: Any
) -> Any:
    """Side rows lie in what the model takes for padding; there must be enough of it."""
    steering = getattr(self, "adaptvis", None)
    extra = 0 if steering is None else steering.extra_rows
    assert num_tokens + extra <= self.max_num_tokens
    return original(self, num_tokens=num_tokens + extra, **kwargs)


def model_forward(original: Callable[..., Any], self: Any, **inputs: Any) -> Any:
    """Side rows in, the chosen ones out."""
    steering = self.adaptvis
    if steering is None or not steering.extra_rows:
        return original(self, **inputs)
    steering.copy_rows(*(inputs[n] for n in ("input_ids", "inputs_embeds", "positions")))
    steering.before_forward(self.get_model(), get_forward_context().is_padding)
    hidden = original(self, **inputs)
    steering.after_forward(hidden)
    return hidden


def sample_tokens(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Send confidences and alphas along; on a CPU, spare the generators of discarded rows.

    vLLM's own fault, steering or not: it winds back the generator of a row whose token is
    discarded by an offset, which CPU generators do not have (any seeded prompt of more than one
    chunk stops vLLM 0.32), so such rows sample without their generator.
    """
    generators = self.input_batch.generators
    held = {}
    if generators and self.device.type == "cpu":
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]
        held = {i: generators.pop(i) for i in discarded.tolist() if i in generators}
    output = original(self, *args, **kwargs)
    generators.update(held)
    return output if self.adaptvis is None else self.adaptvis.end_sampling(output)
