"""The requests that a worker holds, and which of them a step steers.

SIDES   the chunk that ends the prompt, with more rows behind the batch: row n with
        alpha_low and with alpha_high. Row n itself is unsteered: C -> one of the two,
        whose logits, keys and values then take row n's place. Or row n with each of the
        candidates, whose logits are reported and no more
STEER   row n in place, with an alpha that is known: ScalingVis, or resumed; and rows of
        generated tokens, of requests that ask for it, in every step that computes one

Attention weights of row n, and of the rows of generated tokens, are captured once, whatever
is computed again after a preemption.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from adaptvis_vllm.engine.plan import Captured, SteeredRequest, StepPlan
from adaptvis_vllm.steering.params import completed, option_tokens, positions_of
from adaptvis_vllm.steering.span import pack_bits


class Held:
    """num_layers: of the model. device: of `alpha`, a line for each request."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.num_layers = num_layers
        self.requests: dict[str, SteeredRequest] = {}
        self.pending: dict[str, SteeredRequest] = {}  # row n not yet steered since (re)start
        self.generating: dict[str, SteeredRequest] = {}  # rows behind n are steered too
        self.following: dict[str, SteeredRequest] = {}  # generated tokens are yet to be captured
        self.alpha = torch.ones(64, dtype=torch.float32, device=device)
        self._free: list[int] = []
        self._slots_used = 0

    def plan(self, scheduler_output: Any) -> StepPlan | None:
        """Of the step that a `SchedulerOutput` asks for; None without steered rows."""
        for req_id in scheduler_output.finished_req_ids:
            self._forget(req_id)
        cached = scheduler_output.scheduled_cached_reqs
        starts: dict[str, int] = {}
        for new in scheduler_output.scheduled_new_reqs:
            self._add(new)
            starts[new.req_id] = new.num_computed_tokens
        for req_id in cached.resumed_req_ids:
            if req_id in self.requests:
                self.pending[req_id] = self.requests[req_id]
        if not (self.pending or self.generating or self.following):
            return None
        starts.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        plan = StepPlan()
        self._follow(plan, scheduler_output.num_scheduled_tokens, starts)
        self._generate(plan, scheduler_output.num_scheduled_tokens, starts)
        for req_id in [r for r in self.pending if r in scheduler_output.num_scheduled_tokens]:
            request, start = self.pending[req_id], starts[req_id]
            end = start + scheduler_output.num_scheduled_tokens[req_id]
            if start > request.last:
                # Resumed behind n on its own cached blocks.
                if not request.steered:
                    raise RuntimeError(
                        f"adaptvis: request {req_id} is past its last prompt position "
                        f"{request.last} without having been steered"
                    )
                del self.pending[req_id]
                continue
            if end <= request.last:
                continue
            plan.starts[req_id] = start
            plan.behind[req_id] = end - 1 - request.last
            del self.pending[req_id]
            request.steered = True
            if request.map_layers and request.captured < request.last:
                self._capture(plan, request, request.last)
            if request.has_sides and not request.decided:
                request.decided = True
                plan.sides.append(request)
            elif request.params.steers:
                plan.steers.append(request)
        plan.sides.sort(key=lambda request: not request.chooses)
        if not (plan.sides or plan.steers or plan.generated or plan.captures):
            return None
        drafts = scheduler_output.scheduled_spec_decode_tokens
        plan.drafts = {req_id: len(tokens) for req_id, tokens in drafts.items()}
        return plan

    def _follow(self, plan: StepPlan, scheduled: dict[str, int], starts: dict[str, int]) -> None:
        """Capture generated tokens' rows that the step computes for the first time."""
        for req_id in [r for r in self.following if r in scheduled]:
            request, start = self.following[req_id], starts[req_id]
            plan.starts[req_id] = start
            for position in range(max(start, request.captured + 1), start + scheduled[req_id]):
                if req_id in self.following:
                    self._capture(plan, request, position)

    def _generate(self, plan: StepPlan, scheduled: dict[str, int], starts: dict[str, int]) -> None:
        """Steer rows behind n, which a step may compute again after a preemption."""
        for req_id in [r for r in self.generating if r in scheduled]:
            request, start = self.generating[req_id], starts[req_id]
            end = start + scheduled[req_id]
            if end > request.last + 1:
                plan.starts[req_id] = start
                first = max(start, request.last + 1)
                plan.generated += [(request, position) for position in range(first, end)]

    def _capture(self, plan: StepPlan, request: SteeredRequest, position: int) -> None:
        plan.captures.append(Captured(request, position))
        request.captured = position
        if position < request.last + request.params.maps_tokens:
            self.following[request.req_id] = request
        else:
            self.following.pop(request.req_id, None)

    def _add(self, new: Any) -> None:
        request = self.requests.get(new.req_id)  # known: resumed after a preemption
        if request is None:
            params = completed(new.sampling_params)
            if not params or (params.mode == "off" and params.maps is None):
                return
            positions = positions_of(new.sampling_params, new.mm_features)
            if not len(positions):
                return
            request = SteeredRequest(
                new.req_id,
                params,
                last=new.prompt_len - 1,
                words=pack_bits(positions),
                positions=positions.astype(np.int32),
                masks=params.head_masks(self.num_layers),
                slot=self._take_slot(),
                options=option_tokens(new.sampling_params),
                map_layers=tuple(params.map_layers(self.num_layers)),
            )
            self.requests[new.req_id] = request
            if params.steers_generated:
                self.generating[new.req_id] = request
        self.pending[new.req_id] = request

    def _forget(self, req_id: str) -> None:
        request = self.requests.pop(req_id, None)
        if request is not None:
            self.pending.pop(req_id, None)
            self.following.pop(req_id, None)
            self.generating.pop(req_id, None)
            self._free.append(request.slot)

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if self._slots_used == len(self.alpha):
            self.alpha = torch.cat([self.alpha, torch.ones_like(self.alpha)])
        self._slots_used += 1
        return self._slots_used - 1
