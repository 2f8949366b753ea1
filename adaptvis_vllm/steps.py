"""Which rows of a step are probed or steered, for either model runner.

One `Steering` lives in each worker. The runner adapters tell it what is scheduled, where
the rows lie in the batch, and show it the logits; the attention wrappers ask it for rows.

    PROBE   the chunk that ends the prompt, unsteered: C -> alpha, on the device
    STEER   the last prompt position n again, alone or inside a resumed chunk, with alpha
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adaptvis_vllm import policy
from adaptvis_vllm.params import SteeringParams
from adaptvis_vllm.plan import SteeredRequest, StepPlan, StepRows
from adaptvis_vllm.span import image_positions, pack_bits


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
            if request.adaptive and not request.probed:
                if end != request.last + 1:
                    raise RuntimeError(
                        f"adaptvis: probe of request {req_id} does not end its prompt "
                        f"(chunk {start}-{end - 1}, last prompt position {request.last})"
                    )
                request.probed = True
                plan.probes.append(request)
            else:
                del self.pending[req_id]
                request.steered = True
                plan.steers.append(request)
        if plan.probes or plan.steers:
            self.plan = plan

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
        if plan.steers:
            self._locate_steers(plan, index, query_start)
        if plan.probes:
            self._locate_probes(plan, index)

    def _locate_steers(
        self, plan: StepPlan, index: Mapping[str, int], query_start: np.ndarray
    ) -> None:
        given = [r for r in plan.steers if not r.adaptive]
        if given:
            lines = np.array([r.slot for r in given], np.int32)
            alphas = np.array([r.params.alpha for r in given], np.float32)
            packed = self._upload(np.stack([lines, alphas.view(np.int32)]))
            self.alpha.index_copy_(0, packed[0].long(), packed[1].view(torch.float32))
        everywhere = self._rows(plan, plan.steers, index, query_start)
        if all(r.layers is None for r in plan.steers):
            plan.by_layer = [
                everywhere if i in self.layers else None for i in range(self.num_layers)
            ]
        else:
            subsets: dict[tuple[str, ...], StepRows | None] = {
                (): None,
                tuple(r.req_id for r in plan.steers): everywhere,
            }
            for i in range(self.num_layers):
                chosen = [r for r in plan.steers if r.layers is None or i in r.layers]
                key = tuple(r.req_id for r in chosen) if i in self.layers else ()
                if key not in subsets:
                    subsets[key] = self._rows(plan, chosen, index, query_start)
                plan.by_layer.append(subsets[key])
        plan.layers_due = sum(rows is not None for rows in plan.by_layer)

    def _rows(
        self,
        plan: StepPlan,
        requests: Sequence[SteeredRequest],
        index: Mapping[str, int],
        query_start: np.ndarray,
    ) -> StepRows:
        lines = [index[r.req_id] for r in requests]
        lens = [len(r.words) for r in requests]
        table = np.array(
            [
                [
                    query_start[i] + r.last - plan.starts[r.req_id]
                    for i, r in zip(lines, requests, strict=True)
                ],
                lines,
                [r.last + 1 for r in requests],
                [r.slot for r in requests],
                np.cumsum([0, *lens[:-1]]),
                lens,
            ],
            np.int32,
        )
        packed = self._upload(np.concatenate([table.ravel(), *(r.words for r in requests)]))
        rows, reqs, kv_lens, slots, starts, words_of = packed[: table.size].view(6, -1)
        return StepRows(
            rows=rows,
            reqs=reqs,
            kv_lens=kv_lens,
            slots=slots,
            alpha=self.alpha,
            span_words=packed[table.size :],
            span_starts=starts,
            span_lens=words_of,
            max_kv_len=max(r.last for r in requests) + 1,
        )

    def _locate_probes(self, plan: StepPlan, index: Mapping[str, int]) -> None:
        """Lines: batch index, slot, kind, decimals as int32; low, high, threshold as floats."""
        ps = [r.params for r in plan.probes]
        ints = np.array(
            [
                [index[r.req_id] for r in plan.probes],
                [r.slot for r in plan.probes],
                [policy.KIND_IDS[p.confidence] for p in ps],
                [-1 if p.confidence_decimals is None else p.confidence_decimals for p in ps],
            ],
            np.int32,
        )
        floats = np.array(
            [[p.alpha_low, p.alpha_high, p.threshold] for p in ps], np.float32
        ).T.copy()
        packed = self._upload(np.concatenate([ints, floats.view(np.int32)]))
        plan.probe_policy = packed
        plan.probe_lines = packed[0].long()

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        """To the device, without waiting for it."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    # -- forward, sampling, report ----------------------------------------------------

    def end_forward(self) -> None:
        """After the forward pass: every layer that owed rows must have recomputed them."""
        plan, self.plan = self.plan, None
        self.sampling = plan
        if plan is not None and plan.layers_done != plan.layers_due:
            raise RuntimeError(
                f"adaptvis: {plan.layers_done} of {plan.layers_due} layers were steered; the "
                "forward pass ran without its attention layers (a CUDA graph, or a skipped hook)"
            )

    def observe(self, logits: torch.Tensor | None, last: torch.Tensor | None = None) -> None:
        """Confidence and alpha of the probed rows, from the raw logits; no host sync.

        logits: [num_rows, V], before penalties, masks and temperature; None on ranks that
        hold none. last: [num_reqs] int, row of each request's last token; None where a
        request has one row.
        """
        plan = self.sampling
        if plan is None or not plan.probes:
            return
        assert plan.probe_lines is not None
        assert plan.probe_policy is not None
        _, slots, kinds, decimals = plan.probe_policy[:4]
        low, high, threshold = plan.probe_policy[4:].view(torch.float32)
        if logits is None:
            conf = torch.zeros(len(plan.probes), dtype=torch.float32, device=self.device)
        else:
            used = {r.params.confidence for r in plan.probes}
            lines = plan.probe_lines if last is None else last[plan.probe_lines]
            conf = policy.confidences(logits.index_select(0, lines), kinds, used)
        if self.broadcast is not None:
            self.broadcast(conf)
        alpha = policy.choose_alpha(conf, low, high, threshold, decimals)
        self.alpha.index_copy_(0, slots.long(), alpha)
        both = torch.stack([conf, alpha])
        if self.device.type == "cpu":
            plan.result = both
        else:
            plan.result = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            plan.result.copy_(both, non_blocking=True)

    def end_sampling(self, output: Any) -> Any:
        """Hang confidences and alphas on the runner's output; returns it.

        They are read on the host only after `get_output` of an asynchronous output has
        waited for the sampled tokens, which were copied after them.
        """
        plan, self.sampling = self.sampling, None
        if plan is None or plan.result is None:
            return output
        req_ids, result = [r.req_id for r in plan.probes], plan.result

        def attach(done: Any) -> Any:
            values = zip(*result.tolist(), strict=True)
            done.adaptvis = dict(zip(req_ids, values, strict=True))
            return done

        get_output = getattr(output, "get_output", None)
        if get_output is None:
            return attach(output)
        output.get_output = lambda: attach(get_output())
        return output

    # -- prompt logprobs --------------------------------------------------------------

    def hold_prompt_logprobs(self, results: dict[str, Any]) -> dict[str, Any]:
        """Move finished prompt logprobs from the probe to the step that samples.

        vLLM emits them with the first token only, and the probe emits no token.
        """
        plan = self.sampling
        if plan is None:
            return results
        for request in plan.probes:
            if request.req_id in results:
                request.prompt_logprobs = results.pop(request.req_id)
        for request in plan.steers:
            held, request.prompt_logprobs = request.prompt_logprobs, None
            if held is not None and plan.starts[request.req_id] == request.last:
                results[request.req_id] = held
        return results
