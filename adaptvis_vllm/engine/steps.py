"""Which rows of a step are steered, for either model runner.

One `Steering` lives in each worker. The runner adapters tell it what is scheduled, where
the rows lie in the batch, and show it hidden states and logits; the attention wrappers ask
it for rows.

    SIDES   the chunk that ends the prompt, with two more rows behind the batch: row n with
            alpha_low and with alpha_high. Row n itself is unsteered: C -> one of the two,
            whose logits, keys and values then take row n's place
    STEER   row n in place, with an alpha that is known: ScalingVis, or resumed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adaptvis_vllm.engine import place
from adaptvis_vllm.engine.plan import SteeredRequest, StepPlan, StepRows
from adaptvis_vllm.steering import policy
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.span import image_positions, pack_bits

# Buffers of models, beside their inputs, that hold a row for each token: Qwen3-VL and Cohere
# Compass, Granite-4 vision, Gemma-3n and Gemma-4. `runner.check` finds models with others.
MODEL_ROWS = ("deepstack_input_embeds", "_ds_buffers", "per_layer_embeddings")


class Steering:
    """The steering state of one worker.

    device: of the model. layers: decoder layer indices that can be steered.
    broadcast: sends a tensor from tensor-parallel rank 0 to all, in place; None for one rank.
    """

    def __init__(
        self,
        device: torch.device,
        layers: Sequence[int],
        broadcast: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self.device = device
        self.layers = frozenset(layers)
        self.num_layers = max(layers, default=-1) + 1
        self.broadcast = broadcast
        self.requests: dict[str, SteeredRequest] = {}
        self.pending: dict[str, SteeredRequest] = {}  # row n not yet steered since (re)start
        self.alpha = torch.ones(64, dtype=torch.float32, device=device)
        self._free: list[int] = []
        self._slots_used = 0
        self.plan: StepPlan | None = None  # read by the attention wrappers
        self.sampling: StepPlan | None = None  # the same plan, between forward and sampling
        self.choosing: StepPlan | None = None  # the same, between forward and logits
        self.caches: Any = None  # `kernels.gpu.commit.Caches`, of layers with paged caches
        self.cache_lines: dict[int, int] = {}  # layer index -> line in it
        self.switch_loras: Callable[[StepPlan | None], None] | None = None

    # -- what is scheduled ------------------------------------------------------------

    def begin_step(self, scheduler_output: Any) -> None:
        """Take in one `SchedulerOutput` before its forward pass."""
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
        self.plan = None
        if not self.pending:
            return
        starts.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        plan = StepPlan()
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
            if request.adaptive and not request.decided:
                request.decided = True
                plan.sides.append(request)
            else:
                plan.steers.append(request)
        if plan.sides or plan.steers:
            drafts = scheduler_output.scheduled_spec_decode_tokens
            plan.drafts = {req_id: len(tokens) for req_id, tokens in drafts.items()}
            self.plan = plan

    @property
    def extra_rows(self) -> int:
        """Side rows of this step."""
        return 0 if self.plan is None else self.plan.num_sides

    def _add(self, new: Any) -> None:
        request = self.requests.get(new.req_id)  # known: resumed after a preemption
        if request is None:
            params = new.sampling_params and SteeringParams.from_flat(
                new.sampling_params.extra_args
            )
            if not params or params.mode == "off":
                return
            words = pack_bits(image_positions(new.mm_features, params.span))
            if not len(words):
                return
            request = SteeredRequest(
                new.req_id,
                params,
                last=new.prompt_len - 1,
                words=words,
                layers=params.layer_set(self.num_layers),
                slot=self._take_slot(),
            )
            self.requests[new.req_id] = request
        self.pending[new.req_id] = request

    def _forget(self, req_id: str) -> None:
        request = self.requests.pop(req_id, None)
        if request is not None:
            self.pending.pop(req_id, None)
            self._free.append(request.slot)

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if self._slots_used == len(self.alpha):
            self.alpha = torch.cat([self.alpha, torch.ones_like(self.alpha)])
        self._slots_used += 1
        return self._slots_used - 1

    # -- where its rows are -----------------------------------------------------------

    def locate(self, index: Mapping[str, int], query_start: np.ndarray) -> None:
        """Place the plan's rows in the batch; before the forward pass.

        index: request id -> batch index. query_start: [num_reqs + 1] int, first token of each.
        """
        plan = self.plan
        assert plan is not None
        plan.num_tokens = int(query_start[-1])
        given = [r for r in plan.steers if not r.adaptive]
        if given:
            lines = np.array([r.slot for r in given], np.int32)
            alphas = np.array([r.params.alpha for r in given], np.float32)
            packed = self._upload(np.stack([lines, alphas.view(np.int32)]))
            self.alpha.index_copy_(0, packed[0].long(), packed[1].view(torch.float32))
        if plan.sides:
            place.sides(plan, index, query_start, self._upload)
        subsets: dict[tuple[bool, ...], StepRows | None] = {}
        requests = (*plan.steers, *plan.sides)
        for i in range(self.num_layers):
            if i not in self.layers:
                plan.by_layer.append(None)
                continue
            on = {r.req_id: r.layers is None or i in r.layers for r in requests}
            key = tuple(on.values())
            if key not in subsets:
                subsets[key] = place.rows(plan, on, index, query_start, self.alpha, self._upload)
            plan.by_layer.append(subsets[key])
        plan.layers_due = sum(rows is not None for rows in plan.by_layer)

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        """To the device, without waiting for it."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    # -- forward ----------------------------------------------------------------------

    def copy_rows(self, *inputs: torch.Tensor | None) -> None:
        """Side rows begin as copies of row n.

        inputs: of the model, with tokens in the first dimension, or in the last one of a matrix
        of positions, which are integers.
        """
        plan = self.plan
        if plan is None or not plan.sides:
            return
        assert plan.source is not None
        for rows in inputs:
            if rows is None:
                continue
            if rows.dim() > 1 and not rows.is_floating_point():
                rows[..., plan.tail] = rows.index_select(-1, plan.source)
            else:
                rows[plan.tail] = rows.index_select(0, plan.source)

    def before_forward(self, model: Any, padding: torch.Tensor | None) -> None:
        """padding: [num_tokens] bool, rows that no expert of a mixture looks at."""
        plan = self.plan
        if plan is None or not plan.sides:
            return
        if padding is not None:
            padding[plan.tail] = False
        for name in MODEL_ROWS:
            rows = getattr(model, name, None)
            self.copy_rows(*(rows if isinstance(rows, list | tuple) else [rows]))
        if self.switch_loras is not None:
            self.switch_loras(plan)

    def after_forward(self, hidden: torch.Tensor) -> None:
        """hidden: [num_tokens or more, hidden size], side rows included."""
        plan = self.plan
        if plan is not None and plan.sides:
            assert hidden.shape[0] >= plan.tail.stop, "the model returned no side rows"
            plan.hidden = hidden[plan.tail]
            self.choosing = plan

    def end_forward(self) -> None:
        """After the forward pass: every layer that owed rows must have computed them."""
        plan, self.plan = self.plan, None
        self.sampling = plan
        if plan is not None and plan.layers_done != plan.layers_due:
            raise RuntimeError(
                f"adaptvis: {plan.layers_done} of {plan.layers_due} layers were steered; the "
                "forward pass ran without its attention layers (a CUDA graph, or a skipped hook)"
            )

    # -- logits, report ---------------------------------------------------------------

    def logits(self, hidden: torch.Tensor, head: Callable[..., Any]) -> torch.Tensor | None:
        """Logits of the rows to be sampled, the chosen side rows' in row n's place.

        hidden: [L, hidden size], rows to be sampled. head: hidden states -> logits, called once
        for them and the side rows together; None on ranks that hold none. No host sync.
        """
        plan, self.choosing = self.choosing, None
        if plan is None:
            return head(hidden)
        assert plan.hidden is not None
        assert plan.lines is not None
        assert plan.firsts is not None
        count = hidden.shape[0]
        logits = head(torch.cat([hidden, plan.hidden]))
        if self.switch_loras is not None:
            self.switch_loras(None)
        raw = None if logits is None else logits.index_select(0, plan.lines)
        chosen = plan.firsts.long() + self._choose(plan, raw)
        if logits is not None:
            logits, sides = logits[:count], logits[count:]
            logits.index_copy_(0, plan.lines, sides.index_select(0, chosen))
        self.commit(plan, chosen)
        return logits

    def commit(self, plan: StepPlan, chosen: torch.Tensor) -> None:
        """Keys and values of the chosen side rows ([P] int64, from 0) into the caches."""
        for write in plan.commits:
            write(chosen)
        plan.commits.clear()
        plan.hidden = plan.kept = None

    def _choose(self, plan: StepPlan, logits: torch.Tensor | None) -> torch.Tensor:
        """[P] bool, whether alpha is alpha_high. logits: [P, V], row n's, raw."""
        assert plan.policy is not None
        slots, kinds, decimals = plan.policy[:3]
        low, high, threshold = plan.policy[3:].view(torch.float32)
        if logits is None:
            conf = torch.zeros(len(plan.sides), dtype=torch.float32, device=self.device)
        else:
            conf = policy.confidences(logits, kinds, {r.params.confidence for r in plan.sides})
        if self.broadcast is not None:
            self.broadcast(conf)
        chosen = ~policy.is_low(conf, threshold, decimals)
        alpha = torch.where(chosen, high, low)
        self.alpha.index_copy_(0, slots.long(), alpha)
        both = torch.stack([conf, alpha])
        if self.device.type == "cpu":
            plan.result = both
        else:
            plan.result = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            plan.result.copy_(both, non_blocking=True)
        return chosen

    def end_sampling(self, output: Any) -> Any:
        """Hang confidences and alphas on the runner's output; returns it.

        They are read on the host only after `get_output` of an asynchronous output has
        waited for the sampled tokens, which were copied after them.
        """
        plan, self.sampling = self.sampling, None
        if self.choosing is not None:
            self.choosing = None
            raise RuntimeError("adaptvis: a step was sampled without a choice of its side rows")
        if plan is None or plan.result is None:
            return output
        req_ids, result = [r.req_id for r in plan.sides], plan.result

        def attach(done: Any) -> Any:
            values = zip(*result.tolist(), strict=True)
            done.adaptvis = dict(zip(req_ids, values, strict=True))
            return done

        get_output = getattr(output, "get_output", None)
        if get_output is None:
            return attach(output)
        output.get_output = lambda: attach(get_output())
        return output
