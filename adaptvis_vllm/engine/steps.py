"""A step's steered rows, for either model runner.

One `Steering` lives in each worker. The runner adapters tell it what is scheduled, where
the rows lie in the batch, and show it hidden states and logits; the attention wrappers ask
it for rows. Which requests they are of is `held`'s to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from adaptvis_vllm.engine import place
from adaptvis_vllm.engine.held import Held
from adaptvis_vllm.engine.plan import HEAD_ROWS, SteeredRequest, StepPlan, StepRows
from adaptvis_vllm.steering import policy

# Buffers of models, beside their inputs, that hold a row for each token: Qwen3-VL and Cohere
# Compass, Granite-4 vision, Gemma-3n and Gemma-4. `runner.check` finds models with others.
MODEL_ROWS = ("deepstack_input_embeds", "_ds_buffers", "per_layer_embeddings")


class Steering:
    """The steering state of one worker.

    device: of the model. layers: index of each decoder layer that can be steered -> its query heads
    on this rank. rank: this one's, tensor-parallel.
    broadcast: sends a tensor from tensor-parallel rank 0 to all, in place; None for one rank.
    gather: [N] -> [ranks, N] of all tensor-parallel ranks; None for one.
    """

    def __init__(
        self,
        device: torch.device,
        layers: Mapping[int, int],
        broadcast: Callable[[torch.Tensor], Any] | None = None,
        gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
        rank: int = 0,
    ) -> None:
        self.device = device
        self.layers = dict(layers)
        self.num_layers = max(layers, default=-1) + 1
        self.num_heads = max(self.layers.values(), default=0)
        self.broadcast, self.gather, self.rank = broadcast, gather, rank
        self.held = Held(self.num_layers, device)
        self.plan: StepPlan | None = None  # read by the attention wrappers
        self.sampling: StepPlan | None = None  # the same plan, between forward and sampling
        self.choosing: StepPlan | None = None  # the same, between forward and logits
        self.caches: Any = None  # `kernels.gpu.commit.Caches`, of layers with paged caches
        self.cache_lines: dict[int, int] = {}  # layer index -> line in it
        self.switch_loras: Callable[..., None] | None = None  # see `runner.v1.set_active_loras`

    # -- where the step's rows are ----------------------------------------------------

    def begin_step(self, scheduler_output: Any) -> None:
        """Take in one `SchedulerOutput` before its forward pass."""
        self.plan = None
        self.plan = self.held.plan(scheduler_output)

    @property
    def extra_rows(self) -> int:
        """Side rows of this step."""
        return 0 if self.plan is None else self.plan.num_sides

    def locate(self, index: Mapping[str, int], query_start: np.ndarray) -> None:
        """Place the plan's rows in the batch; before the forward pass.

        index: request id -> batch index. query_start: [num_reqs + 1] int, first token of each.
        """
        plan = self.plan
        assert plan is not None
        plan.num_tokens = int(query_start[-1])
        given = [r for r in plan.steers if not r.chooses]
        if given:
            lines = np.array([r.slot for r in given], np.int32)
            alphas = np.array([r.params.alpha for r in given], np.float32)
            packed = self._upload(np.stack([lines, alphas.view(np.int32)]))
            self.held.alpha.index_copy_(0, packed[0].long(), packed[1].view(torch.float32))
        if plan.sides:
            place.sides(plan, index, query_start, self._upload)
        subsets: dict[tuple[tuple[int, ...], ...], StepRows | None] = {}
        requests = (*plan.steers, *plan.sides, *(r for r, _ in plan.generated))
        for i in range(self.num_layers):
            if i not in self.layers:
                plan.by_layer.append(None)
                continue
            heads = {r.req_id: self._held_heads(r, i) for r in requests}
            key = tuple(heads.values())
            if key not in subsets:
                subsets[key] = place.rows(
                    plan, heads, index, query_start, self.held.alpha, self._upload
                )
            plan.by_layer.append(subsets[key])
        plan.weights_by_layer = [None] * self.num_layers
        if plan.captures:
            plan.map_heads = self.num_heads
            held = (self._held_heads, index, query_start, self.held.alpha)
            place.weights(plan, self.num_layers, *held, self._upload)
        due = zip(plan.by_layer, plan.weights_by_layer, strict=True)
        plan.layers_due = sum(any(rows) for rows in due)

    def _held_heads(self, request: SteeredRequest, layer: int) -> tuple[int, ...]:
        """Bitmap of the request's steered heads in a layer, of those that this rank holds."""
        count = self.layers[layer]
        return request.heads(layer, self.rank * count, count)

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
        if plan is not None and plan.weights is not None:
            ranks = plan.weights[None] if self.gather is None else self.gather(plan.weights)
            plan.weights = self._to_host(ranks)
            plan.weights_by_layer.clear()

    # -- logits, report ---------------------------------------------------------------

    def logits(self, hidden: torch.Tensor, head: Callable[..., Any]) -> torch.Tensor | None:
        """Logits of the rows to be sampled, the chosen side rows' in row n's place.

        hidden: [L, hidden size], rows to be sampled. head: hidden states -> logits, called once
        for them and the side rows together, and once more for each `HEAD_ROWS` candidates that are
        too many; None on ranks that hold none. No host sync.
        """
        plan, self.choosing = self.choosing, None
        if plan is None:
            return head(hidden)
        assert plan.hidden is not None
        assert plan.lines is not None
        count, choices = hidden.shape[0], len(plan.choices)
        logits = head(torch.cat([hidden, plan.hidden[: plan.with_batch]]))
        base = sides = None
        if logits is not None:
            base, sides = logits.index_select(0, plan.lines), logits[count:]
        found = []
        if choices:
            chosen, values = self._choose(plan, base)
            found.append(values)
            if sides is not None:
                logits.index_copy_(0, plan.lines[:choices], sides.index_select(0, chosen))
            self.commit(plan, chosen)
        if len(plan.sides) > choices:
            found.append(self._candidates(plan, base, sides, head))
        if plan.options is not None:
            found.append(self._best_options(plan, base))
        if self.switch_loras is not None:
            self.switch_loras(None)
        plan.hidden = None
        plan.result = self._to_host(torch.cat(found))
        return None if logits is None else logits[:count]

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Without waiting for it."""
        if self.device.type == "cpu":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def commit(self, plan: StepPlan, chosen: torch.Tensor) -> None:
        """Keys and values of the chosen side rows ([choices] int64, from 0) into the caches."""
        for write in plan.commits:
            write(chosen)
        plan.commits.clear()
        plan.kept = None

    def _choose(
        self, plan: StepPlan, logits: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[choices] int64, the side row with the alpha that was chosen; and what `StepPlan.result`
        says of it. logits: [P, V], row n's, raw."""
        assert plan.policy is not None
        slots, kinds, decimals, firsts = plan.policy[:4]
        low, high, threshold = plan.policy[4:].view(torch.float32)
        count = len(plan.choices)
        if logits is None:
            conf = torch.zeros(count, dtype=torch.float32, device=self.device)
        else:
            asked = {r.params.confidence for r in plan.choices}
            conf = policy.confidences(logits[:count], kinds, asked)
            if plan.options is not None and plan.options.choices:
                some = slice(0, plan.options.choices)
                lines, sizes = plan.options.lines[some], plan.options.sizes[some]
                over = policy.option_logits(logits[lines], plan.options.tokens[some])
                of = policy.confidences(over, kinds[lines], asked, sizes)
                conf.index_copy_(0, lines, of)
        if self.broadcast is not None:
            self.broadcast(conf)
        is_high = ~policy.is_low(conf, threshold, decimals)
        alpha = torch.where(is_high, high, low)
        self.held.alpha.index_copy_(0, slots.long(), alpha)
        return firsts.long() + is_high, torch.cat([conf, alpha]).view(torch.int32)

    def _candidates(
        self,
        plan: StepPlan,
        base: torch.Tensor | None,
        sides: torch.Tensor | None,
        head: Callable[..., Any],
    ) -> torch.Tensor:
        """What `StepPlan.result` says of candidates; zeros on ranks without logits.

        base: [P, V], row n's logits, raw. sides: those of the first side rows.
        """
        assert plan.hidden is not None
        best = [] if sides is None else [policy.best(sides[plan.num_kept :])]
        for start in range(plan.with_batch, plan.num_sides, HEAD_ROWS):
            rows = slice(start, min(start + HEAD_ROWS, plan.num_sides))
            if self.switch_loras is not None:
                self.switch_loras(plan, rows)
            logits = head(plan.hidden[rows])
            if logits is not None:
                best.append(policy.best(logits))
        if base is None:
            size = plan.result_size - 2 * len(plan.choices)
            return torch.zeros(size, dtype=torch.int32, device=self.device)
        tokens, probabilities = zip(*best, strict=True)
        measures = policy.measures(base[len(plan.choices) :])
        if plan.options is not None:
            some = slice(plan.options.choices, None)
            lines, sizes = plan.options.lines[some], plan.options.sizes[some]
            over = policy.option_logits(base[lines], plan.options.tokens[some])
            measures.index_copy_(1, lines - len(plan.choices), policy.measures(over, sizes))
        found = torch.cat([*probabilities, measures.flatten()]).view(torch.int32)
        return torch.cat([*tokens, found])

    def _best_options(self, plan: StepPlan, base: torch.Tensor | None) -> torch.Tensor:
        """[Q] int32, of the requests with options the most probable one; zeros on ranks without
        logits. base: as of `_candidates`."""
        assert plan.options is not None
        if base is None:
            return torch.zeros(len(plan.options.lines), dtype=torch.int32, device=self.device)
        over = policy.option_logits(base[plan.options.lines], plan.options.tokens)
        return over.argmax(-1).int()

    def end_sampling(self, output: Any) -> Any:
        """Hang confidences, alphas, candidates and maps on the runner's output; returns it.

        They are read on the host only after `get_output` of an asynchronous output has
        waited for the sampled tokens, which were copied after them.
        """
        plan, self.sampling = self.sampling, None
        if self.choosing is not None:
            self.choosing = None
            raise RuntimeError("adaptvis: a step was sampled without a choice of its side rows")
        if plan is None or (plan.result is None and plan.weights is None):
            return output

        def attach(done: Any) -> Any:
            done.adaptvis = {} if plan.result is None else plan.results()
            done.adaptvis_maps = plan.maps(done.adaptvis)
            return done

        get_output = getattr(output, "get_output", None)
        if get_output is None:
            return attach(output)
        output.get_output = lambda: attach(get_output())
        return output
