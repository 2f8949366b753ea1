"""Once, as an engine starts: do side rows reproduce the row that they copy?

Side rows lie in what vLLM takes for padding. That a model computes padding like any other row is
nobody's promise: one that holds rows in buffers of its own may not. So two prompts, one that ends
in an image embedding and one that ends in text, are run with both alphas 1. Then side rows and row
n are the same row, and their hidden states must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm import SamplingParams
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.registry import TimingContext
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from adaptvis_vllm.engine.compat import WITHOUT
from adaptvis_vllm.engine.scheduling import ROOM
from adaptvis_vllm.steering.params import AdaptVis, Off, ScalingVis, SteeringParams
from adaptvis_vllm.steering.span import image_positions

NAME = "adaptvis-check"
SIZE = (224, 224)  # of the sample picture, in pixels
TEXT = [1, 2, 3]  # tokens behind it
ADAPTIVE, SCALING, MAPS = AdaptVis(1, 1, 0.5), ScalingVis(1), Off(maps="all")
WARMED = ("cuda",)  # devices whose kernels are compiled when they are first called
# Largest difference of hidden states, relative to their norm. Rounding of 16 bits adds up over
# layers, and may send a row to another expert; a forgotten buffer is worth more.
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_16 = 0.1


def check_side_rows(original: Callable[..., Any], self: Any) -> Any:
    """Wraps `compile_or_warm_up_model` of a worker; ValueError for a model that fails."""
    result = original(self)
    if getattr(self.model_runner, "adaptvis", None) is not None:
        reason = problem(self)
        if reason:
            raise ValueError(f"adaptvis: {reason}; {WITHOUT}")
    return result


def problem(worker: Any) -> str | None:
    """Why side rows cannot be trusted on this worker's model; None if they can."""
    differences = measure(worker)
    dtype = worker.model_config.dtype
    allowed = TOLERANCE.get(dtype, TOLERANCE_16)
    for where, difference in differences.items():
        if not difference <= allowed:
            return (
                f"rows behind the batch are not computed like those in it (hidden states differ "
                f"by {difference:.2g} of their size where a prompt ends in {where}; at most "
                f"{allowed:g} is rounding), so that adaptive steering would go wrong: "
                f"{worker.model_config.architecture} is not supported"
            )
    return None


@torch.inference_mode()
def measure(worker: Any) -> dict[str, float]:
    """Relative difference of side rows and row n, by what the prompt ends in.

    Empty where not one picture fits into the engine: nobody will send one.
    """
    runner, config = worker.model_runner, worker.vllm_config
    tokens, features = _sample(runner, config.model_config)
    if not features:
        return {}
    last = int(image_positions(features, "embeddings")[-1])
    with_text = [*tokens, *TEXT]
    runs = [("an image", tokens[: last + 1], ADAPTIVE), ("text", with_text, ADAPTIVE)]
    if runner.device.type in WARMED:  # a row in its place has a kernel of its own, and so have maps
        runs += [("", with_text, SCALING), ("", with_text, MAPS)]
    scheduler = config.scheduler_config
    budget = scheduler.max_num_scheduled_tokens or (
        scheduler.max_num_batched_tokens - getattr(scheduler, ROOM)
    )
    out = {}
    for where, prompt, steering in runs:
        blocks = _blocks(runner.kv_cache_config, len(prompt) + 1)
        if blocks is None or len(prompt) >= config.model_config.max_model_len:
            continue
        with _watched(runner.adaptvis) as seen:
            for step in _steps(prompt, features, blocks, budget, steering):
                if worker.execute_model(step) is None:
                    done = worker.sample_tokens(None)
                    if hasattr(done, "get_output"):
                        done.get_output()
        if not where:
            continue
        ((base, sides),) = seen
        difference = (sides.double() - base.double()).norm(dim=-1) / base.double().norm(dim=-1)
        out[where] = difference.max().item()
    return out


class _watched:
    """Collects (row n, side rows), hidden states of each step."""

    def __init__(self, steering: Any) -> None:
        self.steering = steering

    def __enter__(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        original = self.steering.after_forward

        def after_forward(hidden: torch.Tensor) -> None:
            plan = self.steering.plan
            if plan is not None and plan.sides:
                seen.append((hidden[plan.base].clone(), hidden[plan.tail].clone()))
            original(hidden)

        self.steering.after_forward = after_forward
        return seen

    def __exit__(self, *_: object) -> None:
        del self.steering.after_forward


def _sample(runner: Any, model_config: Any) -> tuple[list[int], list[MultiModalFeatureSpec]]:
    """A prompt that vLLM itself makes for profiling, with one small picture (or video)."""
    budget = getattr(runner, "mm_budget", None)
    processor = budget.processor if budget else MULTIMODAL_REGISTRY.create_processor(model_config)
    limits = processor.info.allowed_mm_limits
    kind = next((kind for kind in ("image", "video") if limits.get(kind) != 0), None)
    if kind is None:
        return [], []
    none: Any = {}
    inputs = processor.get_dummy_inputs(model_config.max_model_len, {kind: 1}, none)
    if kind == "image":
        noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
        picture = {"image": Image.fromarray(noise)}
        inputs.mm_data_items = processor.info.parse_mm_data(picture, validate=False)
    made = processor.apply(inputs, timing_ctx=TimingContext(enabled=False))
    features = [
        MultiModalFeatureSpec(
            data=made["mm_kwargs"][modality][i],
            modality=modality,
            identifier=f"{NAME}-{modality}-{i}",
            mm_position=place,
            mm_hash=f"{NAME}-{modality}-{i}",
        )
        for modality, places in made["mm_placeholders"].items()
        for i, place in enumerate(places)
    ]
    features.sort(key=lambda feature: feature.mm_position.offset)
    return list(made["prompt_token_ids"]), features


def _blocks(kv_cache_config: Any, length: int) -> tuple[list[int], ...] | None:
    """Cache blocks of one request, by group; None where they do not fit. The caches are empty."""
    out, first = [], 1  # 0 is the null block
    for group in kv_cache_config.kv_cache_groups:
        count = -(-length // group.kv_cache_spec.block_size)
        out.append(list(range(first, first + count)))
        first += count
    return tuple(out) if first <= kv_cache_config.num_blocks else None


def _steps(
    prompt: Sequence[int],
    features: Sequence[MultiModalFeatureSpec],
    blocks: tuple[list[int], ...],
    budget: int,
    steering: SteeringParams,
) -> Iterator[SchedulerOutput]:
    """The prompt in chunks, then its end."""
    for start in range(0, len(prompt), budget):
        step = SchedulerOutput.make_empty()
        if start == 0:
            step.scheduled_new_reqs = [
                NewRequestData(
                    req_id=NAME,
                    prompt_token_ids=list(prompt),
                    mm_features=list(features),
                    sampling_params=SamplingParams(
                        max_tokens=1, temperature=0.0, extra_args=steering.extra_args()
                    ),
                    pooling_params=None,
                    block_ids=blocks,
                    num_computed_tokens=0,
                    lora_request=None,
                    prefill_token_ids=list(prompt),
                )
            ]
            step.scheduled_encoder_inputs = {NAME: list(range(len(features)))}
        else:
            again = CachedRequestData.make_empty()
            again.req_ids, again.new_block_ids = [NAME], [None]
            again.num_computed_tokens, again.num_output_tokens = [start], [0]
            step.scheduled_cached_reqs = again
        step.total_num_scheduled_tokens = min(budget, len(prompt) - start)
        step.num_scheduled_tokens = {NAME: step.total_num_scheduled_tokens}
        yield step
    end = SchedulerOutput.make_empty()
    end.finished_req_ids = {NAME}
    end.free_encoder_mm_hashes = [feature.identifier for feature in features]
    yield end
