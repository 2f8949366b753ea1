"""What one step of a worker holds: its requests, their steered rows, and rows that are captured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.first_tokens import Tokens
from adaptvis_vllm.steering.heads import bitmap
from adaptvis_vllm.steering.params import SteeringParams

HEAD_ROWS = 256  # side rows without a choice whose logits are computed at once


@dataclass
class SteeredRequest:
    """What a worker keeps of a request from its first step to its last.

    Of one with candidates nothing is steered: it is done once its side rows are computed. One that
    is off is here for its maps alone.
    """

    req_id: str
    params: SteeringParams
    last: int  # n, the last prompt position
    words: np.ndarray  # [W] int32, bitmap of the image positions
    positions: np.ndarray  # [P] int32, the same as numbers
    masks: Mapping[int, int]  # layer -> its steered heads, see `SteeringParams.head_masks`
    slot: int  # its line in the alpha table
    decided: bool = False  # its side rows are computed, and a chosen alpha is in the table
    steered: bool = False
    options: Tokens | None = None  # over which its confidence is taken
    map_layers: tuple[int, ...] = ()  # layers whose weights are captured
    captured: int = -1  # the last position whose weights are
    _bitmaps: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def chooses(self) -> bool:
        """Whether one of its side rows takes row n's place. Maps want an unsteered row n, so that
        scaling has a side row then, the only one to choose."""
        mode = self.params.mode
        return mode == "adaptive" or (mode == "scaling" and bool(self.map_layers))

    def heads(self, layer: int, first: int, count: int) -> tuple[int, ...]:
        """Bitmap of those of a layer's heads from `first` on that are steered."""
        found = self._bitmaps.get(layer)
        if found is None:
            found = self._bitmaps[layer] = bitmap(self.masks.get(layer, 0), first, count)
        return found

    @property
    def has_sides(self) -> bool:
        """Whether its prompt ends with side rows."""
        return self.chooses or self.params.mode == "candidates"

    @property
    def alphas(self) -> tuple[float, ...]:
        """Of its side rows, in their order."""
        if self.params.candidates is not None:
            return self.params.candidates
        if self.params.alpha is not None:
            return (self.params.alpha,)
        low, high = self.params.alpha_low, self.params.alpha_high
        assert low is not None
        assert high is not None
        return (low, high)


@dataclass
class StepRows:
    """The steered rows of one step in one layer, on the device, as a kernel takes them.

    An entry is one row in its place, or one or two side rows of one request, neighbours that
    share keys and values but those of their own position n.

    rows: [E] int32, the entry's first row in the batch. reqs: [E] int32, line of the block
    table. kv_lens: [E] int32, the row's position + 1. slots: [E] int32, index of the first row's
    alpha; the second one's follows. alpha: [S] float32. span_words: [W] int32, bitmaps;
    span_starts, span_lens: [E] int32, in words. rules: [E] int32, index in
    `kernels.gpu.config.RULES`. heads: [E, HW] int32, bitmaps of the rank's query heads that are
    steered; the others of these rows are computed too.
    own: [E] int32, side rows of the entry; 0 for a row in its place.
    max_kv_len: the largest of kv_lens, on the host. sides: all side rows of the step.
    """

    rows: torch.Tensor
    reqs: torch.Tensor
    kv_lens: torch.Tensor
    slots: torch.Tensor
    alpha: torch.Tensor
    span_words: torch.Tensor
    span_starts: torch.Tensor
    span_lens: torch.Tensor
    rules: torch.Tensor
    heads: torch.Tensor
    own: torch.Tensor
    max_kv_len: int
    sides: slice = field(default_factory=lambda: slice(0, 0))

    @property
    def num_sides(self) -> int:
        return self.sides.stop - self.sides.start

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order in which the kernels take them."""
        return (
            *(self.rows, self.reqs, self.kv_lens, self.slots, self.alpha),
            *(self.span_words, self.span_starts, self.span_lens, self.rules, self.heads),
        )


@dataclass
class Captured:
    """The rows of one position of a request whose attention weights a step captures.

    Of n, and of a request that chooses, its side rows come behind it.
    """

    request: SteeredRequest
    position: int
    start: int = 0  # of its block in the step's weights

    @property
    def alphas(self) -> tuple[float, ...]:
        """Of the side rows among the rows."""
        of_sides = self.request.chooses and self.position == self.request.last
        return self.request.alphas if of_sides else ()

    def shape(self, heads: int) -> tuple[int, int, int, int]:
        """[rows, layers, heads, positions + 2] of its block."""
        request = self.request
        return 1 + len(self.alphas), len(request.map_layers), heads, len(request.positions) + 2


@dataclass
class WeightRows:
    """The captured rows of one step in one layer, on the device, as a kernel takes them.

    rows, reqs, kv_lens, slots: [E] int32, alpha: [S] float32, span_words: [W], span_starts,
    span_lens: [E] int32, as of `StepRows`. own: [E] int32, 1 for a side row. positions: [sum of P]
    int32; pos_starts, pos_lens: [E] int32. offsets: [E] int64 into out; -1 for a row that is not
    captured in this layer. out: [N] float16, of all layers and rows of the step.
    """

    out: torch.Tensor
    rows: torch.Tensor
    reqs: torch.Tensor
    kv_lens: torch.Tensor
    slots: torch.Tensor
    alpha: torch.Tensor
    span_words: torch.Tensor
    span_starts: torch.Tensor
    span_lens: torch.Tensor
    rules: torch.Tensor
    heads: torch.Tensor
    own: torch.Tensor
    positions: torch.Tensor
    pos_starts: torch.Tensor
    pos_lens: torch.Tensor
    offsets: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order in which the kernels take them, without out."""
        return (
            *(self.rows, self.reqs, self.kv_lens, self.slots, self.alpha),
            *(self.span_words, self.span_starts, self.span_lens, self.rules, self.heads, self.own),
            *(self.positions, self.pos_starts, self.pos_lens, self.offsets),
        )


@dataclass
class OptionRows:
    """Side requests of a step whose confidence is taken over options, Q of them.

    lines: [Q] int64, their numbers among the step's side requests, ascending. tokens: [Q, K, T]
    int64, of their options, -1 for none. sizes: [Q] int64, options of each. choices: how many of
    them, the first ones, choose.
    """

    lines: torch.Tensor
    tokens: torch.Tensor
    sizes: torch.Tensor
    choices: int


@dataclass
class StepPlan:
    """One step that holds a steered row, a captured one, or the end of a prompt that has side rows.

    A request in `sides` has rows behind the batch's `num_tokens`: copies of its row n, one with
    each of its alphas. Nobody but us knows of them. Requests that choose come first, whose rows
    are kept until one is chosen; then those with candidates, whose rows end with their logits.
    """

    sides: list[SteeredRequest] = field(default_factory=list)
    steers: list[SteeredRequest] = field(default_factory=list)
    generated: list[tuple[SteeredRequest, int]] = field(default_factory=list)  # (request, position)
    starts: dict[str, int] = field(default_factory=dict)  # first position of the chunk
    behind: dict[str, int] = field(default_factory=dict)  # scheduled positions behind n
    drafts: dict[str, int] = field(default_factory=dict)  # of all requests of the step
    by_layer: list[StepRows | None] = field(default_factory=list)
    layers_due: int = 0  # layers that must compute rows in this step
    layers_done: int = 0
    num_tokens: int = 0  # of the batch, without side rows
    base_np: np.ndarray | None = None  # [P] int64, row n of each side request
    base: torch.Tensor | None = None  # the same on the device
    lines: torch.Tensor | None = None  # [P] int64, their lines in the logits
    source: torch.Tensor | None = None  # [rows] int64, the row that each side row copies
    policy: torch.Tensor | None = None  # [7, choices] int32, see `place.sides`
    options: OptionRows | None = None
    hidden: torch.Tensor | None = None  # [rows, hidden size], of the side rows
    kept: Any = None  # `kernels.gpu.commit.Kept`, of layers with paged caches
    commits: list[Callable[[torch.Tensor], None]] = field(default_factory=list)
    result: torch.Tensor | None = None  # [result_size] int32 on the host, see `results`
    captures: list[Captured] = field(default_factory=list)
    weights_by_layer: list[WeightRows | None] = field(default_factory=list)
    map_heads: int = 0  # query heads of a rank
    weights: torch.Tensor | None = None  # [ranks, N] float16, on the host in the end

    @property
    def choices(self) -> list[SteeredRequest]:
        """The requests of `sides` that choose."""
        return [r for r in self.sides if r.chooses]

    @property
    def num_kept(self) -> int:
        """Side rows of which one will be chosen, the first ones."""
        return sum(len(r.alphas) for r in self.choices)

    @property
    def result_size(self) -> int:
        choices = len(self.choices)
        others = len(self.sides) - choices
        return 2 * choices + 2 * (self.num_sides - self.num_kept) + len(CONFIDENCES) * others

    def results(self) -> dict[str, Any]:
        """By request: (confidence, alpha), or of candidates their tokens, their probabilities and
        the measures of the unsteered row, `CONFIDENCES`; and of one with options the number of the
        best one. Reads `result`, which must have arrived.

        It has confidences and alphas of choices; tokens, probabilities, measures, each of all
        candidates; floats as the int32 of the same bits; then the best options.
        """
        assert self.result is not None
        bits = self.result.numpy()
        floats = bits.view(np.float32)
        choices, rows = len(self.choices), self.num_sides - self.num_kept
        out: dict[str, Any] = {
            r.req_id: (float(floats[i]), float(floats[choices + i]))
            for i, r in enumerate(self.choices)
        }
        first = 2 * choices
        measures = floats[first + 2 * rows : self.result_size].reshape(len(CONFIDENCES), -1)
        for i, request in enumerate(self.sides[choices:]):
            last = first + len(request.alphas)
            probabilities = floats[first + rows : last + rows]
            found = (bits[first:last], probabilities, measures[:, i])
            out[request.req_id] = tuple(values.tolist() for values in found)
            first = last
        asked = [r.req_id for r in self.sides if r.options]
        for req_id, best in zip(asked, bits[self.result_size :].tolist(), strict=True):
            out[req_id] += (best,)
        return out

    def maps(self, results: dict[str, Any]) -> dict[str, list[bytes]]:
        """By request the captured weights of the step, float16, one piece a position: of n
        [1 or 2, layers, heads, positions + 2], unsteered and as chosen; of a generated token [1,
        ..]. Reads `weights`, which must have arrived. results: what `results` returns.
        """
        out: dict[str, list[bytes]] = {}
        if self.weights is None:
            return out
        ranks = self.weights.numpy()
        for captured in self.captures:
            shape = captured.shape(self.map_heads)
            block = ranks[:, captured.start : captured.start + int(np.prod(shape))]
            rows = np.concatenate(block.reshape(len(ranks), *shape), axis=2)
            request = captured.request
            if captured.alphas:
                is_low = results[request.req_id][1] == np.float32(captured.alphas[0])
                rows = rows[[0, 1 if is_low else len(captured.alphas)]]
            out.setdefault(request.req_id, []).append(rows.tobytes())
        return out

    @property
    def with_batch(self) -> int:
        """Side rows, the first ones, whose logits are computed with the batch's."""
        return min(self.num_sides, self.num_kept + HEAD_ROWS)

    @property
    def num_sides(self) -> int:
        """Side rows."""
        return sum(len(r.alphas) for r in self.sides)

    @property
    def tail(self) -> slice:
        """The side rows in the batch."""
        return slice(self.num_tokens, self.num_tokens + self.num_sides)
