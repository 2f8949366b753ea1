"""Where the rows of a step's plan lie: lists for the device, worked out on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from adaptvis_vllm.engine.plan import OptionRows, SteeredRequest, StepPlan, StepRows, WeightRows
from adaptvis_vllm.steering import policy
from adaptvis_vllm.steering.fields import RULES

Upload = Callable[[np.ndarray], torch.Tensor]
PAIR = 2  # side rows of an entry at most
ALWAYS_LOW = 2.0  # a threshold above every confidence, where there is one side row


def row_n(
    request: SteeredRequest, plan: StepPlan, index: Mapping[str, int], query_start: np.ndarray
) -> int:
    """Row of the batch that holds position n of a request."""
    return row_of(request, request.last, plan, index, query_start)


def row_of(
    request: SteeredRequest,
    position: int,
    plan: StepPlan,
    index: Mapping[str, int],
    query_start: np.ndarray,
) -> int:
    """Row of the batch that holds a position of a request."""
    return int(query_start[index[request.req_id]]) + position - plan.starts[request.req_id]


def rows(
    plan: StepPlan,
    heads: Mapping[str, tuple[int, ...]],
    index: Mapping[str, int],
    query_start: np.ndarray,
    alpha: torch.Tensor,
    upload: Upload,
) -> StepRows | None:
    """The rows of layers in which these heads are steered; None for no rows.

    heads: request id -> `SteeredRequest.heads`, of one length. Rows in place read their alpha from
    the table, side rows from lines behind it. Side rows of a request without heads are computed
    unsteered: nobody else computes them.
    """
    in_place = [*((r, r.last) for r in plan.steers), *plan.generated]
    entries = [
        (r, row_of(r, position, plan, index, query_start), position, r.slot, 0)
        for r, position in in_place
        if any(heads[r.req_id])
    ]
    alphas: list[float] = []
    for request in plan.sides:
        values = request.alphas
        for first in range(0, len(values), PAIR):
            count = len(values[first : first + PAIR])
            number = len(alphas) + first
            row, slot = plan.num_tokens + number, len(alpha) + number
            entries.append((request, row, request.last, slot, count))
        alphas += values
    if not entries:
        return None
    lens = [len(r.words) for r, *_ in entries]
    table = np.array(
        [
            [row for _, row, *_ in entries],
            [index[r.req_id] for r, *_ in entries],
            [position + 1 for _, _, position, *_ in entries],
            [slot for *_, slot, _ in entries],
            np.cumsum([0, *lens[:-1]]),
            lens,
            [own for *_, own in entries],
            [RULES.index(r.params.rule) for r, *_ in entries],
        ],
        np.int32,
    )
    bitmaps = np.array([heads[r.req_id] for r, *_ in entries], np.int32)
    behind = np.array(alphas, np.float32).view(np.int32)
    lists = [table.ravel(), bitmaps.ravel(), *(r.words for r, *_ in entries), behind]
    packed = upload(np.concatenate(lists))
    first, reqs, kv_lens, slots, starts, words_of, own, rules = packed[: table.size].view(8, -1)
    on, words, tail = packed[table.size :].split([bitmaps.size, sum(lens), len(behind)])
    return StepRows(
        rows=first,
        reqs=reqs,
        kv_lens=kv_lens,
        slots=slots,
        alpha=torch.cat([alpha, tail.view(torch.float32)]) if alphas else alpha,
        span_words=words,
        span_starts=starts,
        span_lens=words_of,
        rules=rules,
        heads=on.view(bitmaps.shape),
        own=own,
        max_kv_len=max(position for _, _, position, *_ in entries) + 1,
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
            [r.alphas[0] for r in choices],
            [r.alphas[-1] for r in choices],
            [ALWAYS_LOW if p.threshold is None else p.threshold for p in params],
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
    plan.options = _options(plan, upload)


def _options(plan: StepPlan, upload: Upload) -> OptionRows | None:
    asked = [(line, r.options) for line, r in enumerate(plan.sides) if r.options]
    if not asked:
        return None
    most = max(len(options) for _, options in asked)
    longest = max(len(tokens) for _, options in asked for tokens in options)
    table = np.full((len(asked), most, longest), -1, np.int64)
    for row, (_, options) in zip(table, asked, strict=True):
        for place, tokens in zip(row, options, strict=False):
            place[: len(tokens)] = tokens
    lines = [line for line, _ in asked]
    lists = np.array([lines, [len(options) for _, options in asked]], np.int64)
    packed = upload(np.concatenate([lists.ravel(), table.ravel()]))
    where, tokens = packed.split([lists.size, table.size])
    numbers, sizes = where.view(2, -1)
    choices = sum(line < len(plan.choices) for line in lines)
    return OptionRows(numbers, tokens.view(table.shape), sizes, choices)


def weights(
    plan: StepPlan,
    num_layers: int,
    held_heads: Callable[[SteeredRequest, int], tuple[int, ...]],
    index: Mapping[str, int],
    query_start: np.ndarray,
    held_alpha: torch.Tensor,
    upload: Upload,
) -> None:
    """Place the plan's captured rows in the batch and their weights in one list.

    held_heads: `SteeredRequest.heads` of a request in a layer, of the heads that this rank holds.
    held_alpha: the table, of rows of generated tokens that are steered.
    Of a captured position its block is [rows, layers, heads, positions + 2], see `Captured`.
    """
    first_side: dict[str, int] = {}
    count = plan.num_tokens
    for request in plan.sides:
        first_side[request.req_id] = count
        count += len(request.alphas)
    entries: list[tuple[int, int, int, int]] = []  # row, line of the block table, kv_len, own
    requests: list[SteeredRequest] = []
    alphas = [1.0]  # line 0 behind the table: of rows that are not steered, like all their heads
    offsets: list[np.ndarray] = []  # of each entry [layers]
    slots: list[int] = []
    on: list[bool] = []  # whether heads of the row are steered
    size = 0
    for captured in plan.captures:
        request, line = captured.request, index[captured.request.req_id]
        row = row_of(request, captured.position, plan, index, query_start)
        rows, layers, heads, width = captured.shape(plan.map_heads)
        captured.start = size
        for number in range(rows):
            where = row if number == 0 else first_side[request.req_id] + number - 1
            entries.append((where, line, captured.position + 1, int(number > 0)))
            requests.append(request)
            places = np.full(num_layers, -1, np.int64)
            step = heads * width
            places[list(request.map_layers)] = size + step * np.arange(layers)
            offsets.append(places)
            size += layers * step
            steered = number > 0
            if number:
                slots.append(len(held_alpha) + len(alphas))
                alphas.append(captured.alphas[number - 1])
            elif captured.position > request.last and request.params.steers_generated:
                steered = True
                slots.append(request.slot)
            else:
                slots.append(len(held_alpha))
            on.append(steered)
    words = [len(r.words) for r in requests]
    counts = [len(r.positions) for r in requests]
    table = np.array(
        [
            *zip(*entries, strict=True),
            np.cumsum([0, *words[:-1]]),
            words,
            np.cumsum([0, *counts[:-1]]),
            counts,
            slots,
            [RULES.index(r.params.rule) for r in requests],
        ],
        np.int32,
    )
    wanted = {i for r in requests for i in r.map_layers}
    bitmaps = {
        i: np.array(
            [
                np.multiply(held_heads(r, i), steered)
                for r, steered in zip(requests, on, strict=True)
            ],
            np.int32,
        )
        for i in sorted(wanted)
    }
    lists = (
        table.ravel(),
        *(words.ravel() for words in bitmaps.values()),
        np.array(alphas, np.float32).view(np.int32),
        *(r.words for r in requests),
        *(r.positions for r in requests),
    )
    packed = upload(np.concatenate(lists))
    of_heads = [words.size for words in bitmaps.values()]
    sizes = [table.size, *of_heads, len(alphas), sum(words), sum(counts)]
    found, *some, own_alphas, span_words, positions = packed.split(sizes)
    alpha = torch.cat([held_alpha, own_alphas.view(torch.float32)])
    heads_of = {i: t.view(words.shape) for t, (i, words) in zip(some, bitmaps.items(), strict=True)}
    row, req, kv_len, own, word_starts, word_lens, starts, lens, slot, rule = found.view(10, -1)
    offset = upload(np.array(offsets, np.int64).T.copy())
    out = torch.zeros(size, dtype=torch.float16, device=packed.device)
    plan.weights = out
    plan.weights_by_layer = [
        WeightRows(
            out=out,
            rows=row,
            reqs=req,
            kv_lens=kv_len,
            slots=slot,
            alpha=alpha,
            span_words=span_words,
            span_starts=word_starts,
            span_lens=word_lens,
            rules=rule,
            heads=heads_of[i],
            own=own,
            positions=positions,
            pos_starts=starts,
            pos_lens=lens,
            offsets=offset[i],
        )
        if i in wanted
        else None
        for i in range(num_layers)
    ]
