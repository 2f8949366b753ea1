"""What one step of a worker holds: its steered requests, and their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adaptvis_vllm.steering.fields import CONFIDENCES
from adaptvis_vllm.steering.params import SteeringParams

HEAD_ROWS = 256  # side rows without a choice whose logits are computed at once


@dataclass
class SteeredRequest:
    """What a worker keeps of a request from its first step to its last.

    Of one with candidates nothing is steered: it is done once its side rows are computed.
    """

    req_id: str
    params: SteeringParams
    last: int  # n, the last prompt position
    words: np.ndarray  # [W] int32, bitmap of the image positions
    layers: frozenset[int] | None
    slot: int  # its line in the alpha table
    decided: bool = False  # its side rows are computed, and a chosen alpha is in the table
    steered: bool = False

    @property
    def adaptive(self) -> bool:
        return self.params.mode == "adaptive"

    @property
    def has_sides(self) -> bool:
        """Whether its prompt ends with side rows."""
        return self.adaptive or self.params.mode == "candidates"

    @property
    def alphas(self) -> tuple[float, ...]:
        """Of its side rows, in their order."""
        if self.params.candidates is not None:
            return self.params.candidates
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
    table. kv_lens: [E] int32, n + 1. slots: [E] int32, index of the first row's alpha; the second
    one's follows. alpha: [S] float32. span_words: [W] int32, bitmaps; span_starts, span_lens: [E]
    int32, in words. own: [E] int32, side rows of the entry; 0 for a row in its place.
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
            *(self.span_words, self.span_starts, self.span_lens),
        )


@dataclass
class StepPlan:
    """One step that holds a steered row, or the end of a prompt that has side rows.

    A request in `sides` has rows behind the batch's `num_tokens`: copies of its row n, one with
    each of its alphas. Nobody but us knows of them. Adaptive requests come first, whose two rows
    are kept until one is chosen; then those with candidates, whose rows end with their logits.
    """

    sides: list[SteeredRequest] = field(default_factory=list)
    steers: list[SteeredRequest] = field(default_factory=list)
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
    hidden: torch.Tensor | None = None  # [rows, hidden size], of the side rows
    kept: Any = None  # `kernels.gpu.commit.Kept`, of layers with paged caches
    commits: list[Callable[[torch.Tensor], None]] = field(default_factory=list)
    result: torch.Tensor | None = None  # [result_size] int32 on the host, see `results`

    @property
    def choices(self) -> list[SteeredRequest]:
        """The adaptive requests of `sides`."""
        return [r for r in self.sides if r.adaptive]

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
        the measures of the unsteered row, `CONFIDENCES`. Reads `result`, which must have arrived.

        It has confidences and alphas of choices; tokens, probabilities, measures, each of all
        candidates; floats as the int32 of the same bits.
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
        measures = floats[first + 2 * rows :].reshape(len(CONFIDENCES), -1)
        for i, request in enumerate(self.sides[choices:]):
            last = first + len(request.alphas)
            probabilities = floats[first + rows : last + rows]
            found = (bits[first:last], probabilities, measures[:, i])
            out[request.req_id] = tuple(values.tolist() for values in found)
            first = last
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
