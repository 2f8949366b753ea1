"""Where the rows of a step's plan lie: lists for the device, worked out on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from adaptvis_vllm.engine.plan import SteeredRequest, StepPlan, StepRows
from adaptvis_vllm.steering import policy

Upload = Callable[[np.ndarray], torch.Tensor]
PAIR = 2  # side rows of an entry at most


def row_n(
    request: SteeredRequest, plan: StepPlan, index: Mapping[str, int], query_start: np.ndarray
) -> int:
    """Row of the batch that holds position n of a request."""
    return int(query_start[index[request.req_id]]) + request.last - plan.starts[request.req_id]


def rows(
    plan: StepPlan,
    on: Mapping[str, bool],
    index: Mapping[str, int],
    query_start: np.ndarray,
    alpha: torch.Tensor,
    upload: Upload,
) -> StepRows | None:
    """The rows of layers in which the requests that are `on` are scaled; None for no rows.

    Rows in place read their alpha from the table, side rows from lines behind it. Side rows of a
    request that is off are computed with alpha 1: nobody else computes them.
    """
    steers = [r for r in plan.steers if on[r.req_id]]
    entries = [(r, row_n(r, plan, index, query_start), r.slot, 0) for r in steers]
    alphas: list[float] = []
    for request in plan.sides:
        values = request.alphas
        for first in range(0, len(values), PAIR):
            count = len(values[first : first + PAIR])
            number = len(alphas) + first
            entries.append((request, plan.num_tokens + number, len(alpha) + number, count))
        alphas += values if on[request.req_id] else [1.0] * len(values)
    if not entries:
        return None
    lens = [len(r.words) for r, *_ in entries]
    table = np.array(
        [
            [row for _, row, _, _ in entries],
            [index[r.req_id] for r, *_ in entries],
            [r.last + 1 for r, *_ in entries],
            [slot for _, _, slot, _ in entries],
            np.cumsum([0, *lens[:-1]]),
            lens,
            [own for *_, own in entries],
        ],
        np.int32,
    )
    behind = np.array(alphas, np.float32).view(np.int32)
    packed = upload(np.concatenate([table.ravel(), *(r.words for r, *_ in entries), behind]))
    first, reqs, kv_lens, slots, starts, words_of, own = packed[: table.size].view(7, -1)
    words, tail = packed[table.size :].split([sum(lens), len(behind)])
    return StepRows(
        rows=first,
        reqs=reqs,
        kv_lens=kv_lens,
        slots=slots,
        alpha=torch.cat([alpha, tail.view(torch.float32)]) if alphas else alpha,
        span_words=words,
        span_starts=starts,
        span_lens=words_of,
        own=own,
        max_kv_len=max(r.last for r, *_ in entries) + 1,
        sides=plan.tail,
    )


def sides(
    plan: StepPlan, index: Mapping[str, int], query_start: np.ndarray, upload: Upload
) -> None:
    """Fill the plan's lists of requests with side rows.

    policy: of those that choose, line in the alpha table, kind, decimals and first side row as
    int32; low, high, threshold as float32.
    """
    choices = plan.choices
    params = [r.params for r in choices]
    counts = [len(r.alphas) for r in plan.sides]
    plan.base_np = np.array([row_n(r, plan, index, query_start) for r in plan.sides], np.int64)
    drafts = np.zeros(len(query_start) - 1, np.int64)
    for req_id, count in plan.drafts.items():
        drafts[index[req_id]] = count
    ends = np.cumsum(1 + drafts)  # a request has a line of logits for its last row and each draft
    lines = [ends[index[r.req_id]] - 1 - plan.behind[r.req_id] for r in plan.sides]
    ints = np.array(
        [
            [r.slot for r in choices],
            [policy.KIND_IDS[p.confidence] for p in params],
            [-1 if p.confidence_decimals is None else p.confidence_decimals for p in params],
            np.cumsum([0, *counts])[: len(choices)],
        ],
        np.int32,
    )
    floats = np.array(
        [
            [p.alpha_low for p in params],
            [p.alpha_high for p in params],
            [p.threshold for p in params],
        ],
        np.float32,
    )
    lists: Sequence[np.ndarray] = (
        np.array([plan.base_np, lines], np.int32),
        np.repeat(plan.base_np, counts).astype(np.int32),
        ints,
        floats.view(np.int32),
    )
    packed = upload(np.concatenate([part.ravel() for part in lists]))
    where, source, table = packed.split([part.size for part in lists[:2]] + [7 * len(choices)])
    plan.base, plan.lines = where.view(2, -1).long()
    plan.source = source.long()
    plan.policy = table.view(7, -1)
