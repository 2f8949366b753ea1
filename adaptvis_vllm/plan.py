"""What one step of a worker holds: its probed and steered requests, and their rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adaptvis_vllm.params import SteeringParams


@dataclass
class SteeredRequest:
    """What a worker keeps of a request from its first step to its last."""

    req_id: str
    params: SteeringParams
    last: int  # n, the last prompt position
    words: np.ndarray  # [W] int32, bitmap of the image positions
    layers: frozenset[int] | None
    slot: int  # its line in the alpha table
    probed: bool = False
    steered: bool = False
    prompt_logprobs: Any = None  # held back by the probe for the step that samples

    @property
    def adaptive(self) -> bool:
        return self.params.mode == "adaptive"


@dataclass
class StepRows:
    """The steered rows of one step, on the device, as a kernel takes them.

    rows: [R] int32, token index in the batch. reqs: [R] int32, line of the block table.
    kv_lens: [R] int32, n + 1. slots: [R] int32, index into alpha. alpha: [S] float32.
    span_words: [W] int32, bitmaps; span_starts, span_lens: [R] int32, in words.
    max_kv_len: the largest of kv_lens, on the host.
    """

    rows: torch.Tensor
    reqs: torch.Tensor
    kv_lens: torch.Tensor
    slots: torch.Tensor
    alpha: torch.Tensor
    span_words: torch.Tensor
    span_starts: torch.Tensor
    span_lens: torch.Tensor
    max_kv_len: int

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order in which the kernels take them."""
        return (
            *(self.rows, self.reqs, self.kv_lens, self.slots, self.alpha),
            *(self.span_words, self.span_starts, self.span_lens),
        )


@dataclass
class StepPlan:
    """One step that holds a probed or steered row."""

    probes: list[SteeredRequest] = field(default_factory=list)
    steers: list[SteeredRequest] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)  # first position of the chunk
    by_layer: list[StepRows | None] = field(default_factory=list)
    layers_due: int = 0  # layers that must recompute rows in this step
    layers_done: int = 0
    probe_lines: torch.Tensor | None = None  # [P] int64, batch index of each probe
    probe_policy: torch.Tensor | None = None  # [7, P] int32, see `_locate_probes`
    result: torch.Tensor | None = None  # [2, P] float32 on the host: confidence, alpha
