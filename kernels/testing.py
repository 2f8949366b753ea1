"""Random paged inputs for the tests and the benchmark, in the cache layouts that vLLM uses."""

from dataclasses import dataclass, field
from typing import Any

import torch

from .aot.roofline import Model, bytes_moved
from .gpu.config import RULES

# Cache layouts by name; all are indexed as [num_blocks, block_size, num_kv_heads, head_dim].
LAYOUTS = ("nhd", "hnd", "fused", "k_transposed")


@dataclass
class Case:
    args: dict[str, Any]  # of steered_attention, without `out`
    num_tokens: int
    kv_lens: list[int] = field(default_factory=list)

    def empty_out(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """An output of NaN: a row that nobody wrote shows."""
        q = self.args["query"]
        return torch.full(q.shape, float("nan"), dtype=dtype or q.dtype, device=q.device)

    def run(self, attention: Any, out: torch.Tensor | None = None, **changes: Any) -> torch.Tensor:
        out = self.empty_out() if out is None else out
        attention(out, **{**self.args, **changes})
        return out

    @property
    def rows(self) -> list[int]:
        return self.args["rows"].tolist()


def make_case(
    *,
    kv_lens: list[int],
    heads: tuple[int, int] = (4, 2),  # query heads, KV heads
    dim: int = 64,
    block_size: int = 16,
    layout: str = "nhd",
    spans: str = "middle",
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    alpha: float | None = None,
    rule: str | None = "multiply",  # None: a rule at random for each row
    steered: str = "all",  # heads: "all", "some" at random for each row, "none"
    device: str = "cpu",
    seed: int = 0,
    **options: Any,
) -> Case:
    """Rows of the given contexts over a cache in which all else is NaN."""
    g = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    num_rows = len(kv_lens)
    num_tokens = 2 * num_rows + 1
    counts = [-(-n // block_size) for n in kv_lens]
    num_blocks = sum(counts) + 3
    order = torch.randperm(num_blocks, generator=g)
    # Requests lie in the table in another order than their rows.
    reqs = torch.randperm(num_rows, generator=g)
    table = torch.full((num_rows, max(counts) + 2), -1, dtype=torch.int32)
    k_cache, v_cache = empty_caches(layout, num_blocks, block_size, num_kv_heads, dim)
    used = 0
    for req, n, count in zip(reqs.tolist(), kv_lens, counts, strict=True):
        blocks = order[used : used + count]
        used += count
        table[req, :count] = blocks.int()
        pos = torch.arange(n)
        for cache in (k_cache, v_cache):
            x = torch.randn(n, num_kv_heads, dim, generator=g)
            cache[blocks[pos // block_size], pos % block_size] = x
    words, starts, lens = pack_spans([image_mask(spans, n, g) for n in kv_lens])
    slots = torch.randperm(num_rows + 2, generator=g)[:num_rows]
    alphas = torch.rand(num_rows + 2, generator=g) * 1.5 + 0.25
    if alpha is not None:
        alphas.fill_(alpha)

    def cast(cache: torch.Tensor) -> torch.Tensor:
        """The same layout in the cache's dtype."""
        base = cache._base if cache._base is not None else cache
        new = base.to(kv_dtype or dtype).to(device)
        return new.as_strided(cache.shape, cache.stride(), cache.storage_offset())

    def index(t: torch.Tensor) -> torch.Tensor:
        return t.to(torch.int32).to(device)

    args = {
        "query": torch.randn(num_tokens, num_heads, dim, generator=g).to(dtype).to(device),
        "key_cache": cast(k_cache),
        "value_cache": cast(v_cache),
        "block_table": index(table),
        "rows": index(torch.randperm(num_tokens, generator=g)[:num_rows]),
        "reqs": index(reqs),
        "kv_lens": index(torch.tensor(kv_lens)),
        "slots": index(slots),
        "alpha": alphas.float().to(device),
        "span_words": index(words),
        "span_starts": index(starts),
        "span_lens": index(lens),
        "rules": index(_rules(rule, num_rows, g)),
        "heads": head_bits(_steered_heads(steered, num_rows, num_heads, g)).to(device),
        "scale": dim**-0.5,
        "max_kv_len": max(kv_lens),
        **options,
    }
    return Case(args, num_tokens, list(kv_lens))


def _rules(rule: str | None, num_rows: int, g: torch.Generator) -> torch.Tensor:
    if rule is None:
        return torch.randint(len(RULES), (num_rows,), generator=g)
    return torch.full((num_rows,), RULES.index(rule))


def _steered_heads(
    steered: str, num_rows: int, num_heads: int, g: torch.Generator
) -> torch.Tensor:  # [R, heads] bool
    every = torch.ones(num_rows, num_heads, dtype=torch.bool)
    masks = {
        "all": every,
        "none": ~every,
        "some": torch.rand(num_rows, num_heads, generator=g) < 0.5,
    }
    return masks[steered]


def head_bits(heads: torch.Tensor) -> torch.Tensor:
    """[R, num_heads] bool -> [R, ceil(num_heads / 32)] int32, bit h % 32 of word h // 32."""
    num_rows, num_heads = heads.shape
    padded = torch.zeros(num_rows, -(-num_heads // 32) * 32, dtype=torch.int64)
    padded[:, :num_heads] = heads.long()
    words = (padded.view(num_rows, -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def empty_caches(
    layout: str, blocks: int, block_size: int, heads: int, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:  # [blocks, block_size, heads, dim] each, all NaN
    nan = float("nan")
    if layout == "nhd":
        k, v = (torch.full((blocks, block_size, heads, dim), nan) for _ in "kv")
    elif layout == "hnd":
        k, v = (torch.full((blocks, heads, block_size, dim), nan).transpose(1, 2) for _ in "kv")
    elif layout == "fused":  # K and V of one position side by side
        both = torch.full((blocks, heads, block_size, 2 * dim), nan).transpose(1, 2)
        k, v = both[..., :dim], both[..., dim:]
    elif layout == "k_transposed":
        k = torch.full((blocks, heads, dim, block_size), nan).permute(0, 3, 1, 2)
        v = torch.full((blocks, heads, block_size, dim), nan).transpose(1, 2)
    else:
        raise ValueError(f"unknown layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    return k, v


def image_mask(spans: str, n: int, g: torch.Generator) -> torch.Tensor:  # [n] bool
    pos = torch.arange(n)
    masks = {
        "none": pos < 0,
        "all": pos >= 0,
        "middle": (pos >= n // 5) & (pos < n - n // 7),
        "pairs": ((pos >= n // 9) & (pos < n // 3)) | ((pos > n // 2) & (pos < n - 2)),
        "hundreds": pos % 3 != 0,  # a separator after every two image positions
        "random": torch.rand(n, generator=g) < 0.5,
    }
    return masks[spans]


def pack_spans(
    masks: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # words [W], starts [R], lens [R]
    """Bitmaps of all rows in one list; a row's bitmap ends at its last image position."""
    words: list[int] = []
    starts, lens = [], []
    for mask in masks:
        positions = mask.nonzero().flatten().tolist()
        row = [0] * (positions[-1] // 32 + 1 if positions else 0)
        for p in positions:
            row[p // 32] |= 1 << (p % 32)
        starts.append(len(words))
        lens.append(len(row))
        words += [w - (1 << 32) if w >> 31 else w for w in row]
    int32 = torch.int32
    return tuple(torch.tensor(x, dtype=int32) for x in (words, starts, lens))  # type: ignore[return-value]


def make_timing_cases(model: Model, context: int, rows: int, *, min_bytes: int) -> list[Case]:
    """Cases of one model on one bf16 cache, on the GPU; together they read min_bytes or more."""
    num = max(2, -(-min_bytes // bytes_moved(model, context, rows=rows)))
    num = min(num, 256)
    block_size = 16
    per_row = -(-context // block_size)
    shape = (num * rows * per_row, model.num_kv_heads, block_size, 2 * model.head_dim)
    kv = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_().transpose(1, 2)
    k_cache, v_cache = kv.split(model.head_dim, -1)
    tables = torch.randperm(shape[0], device="cuda").int().view(num, rows, per_row)
    words, starts, lens = pack_spans([torch.arange(context) < context * 9 // 10])
    index = torch.arange(rows, dtype=torch.int32, device="cuda")
    query = torch.randn(rows, model.num_heads, model.head_dim, device="cuda", dtype=torch.bfloat16)
    shared: dict[str, Any] = {
        "query": query,
        "key_cache": k_cache,
        "value_cache": v_cache,
        "rows": index,
        "reqs": index,
        "kv_lens": torch.full_like(index, context),
        "slots": index,
        "alpha": torch.full((rows,), 1.5, device="cuda"),
        "span_words": words.cuda(),
        "span_starts": starts.cuda().repeat(rows),
        "span_lens": lens.cuda().repeat(rows),
        "rules": torch.zeros_like(index),
        "heads": torch.full((rows, -(-model.num_heads // 32)), -1, dtype=torch.int32).cuda(),
        "scale": model.head_dim**-0.5,
        "max_kv_len": context,
        "window": model.window,
    }
    return [Case({**shared, "block_table": t}, rows, [context] * rows) for t in tables]


def add_sides(case: Case, own: list[int], *, kept: int | None = None, seed: int = 1) -> Case:
    """The case with side rows behind its tokens. own: of each entry, 0 leaves its row in place.
    kept: how many of them are kept, the first ones; all if left out.

    The cache's own key and value of a side row's last position become NaN: nobody may read them.
    `expected_sides` has what comes out.
    """
    from .gpu.commit import Caches
    from .gpu.launch import Sides

    g = torch.Generator().manual_seed(seed)
    args, total = dict(case.args), sum(own)
    query = args["query"]
    key_cache = _same_layout(args["key_cache"])
    value_cache = _same_layout(args["value_cache"])
    block_size, num_kv_heads, dim = key_cache.shape[1:]
    device, dtype = query.device, query.dtype

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype).to(device)

    args["query"] = torch.cat([query, random(total, *query.shape[1:])])
    alphas = torch.rand(total, generator=g) * 1.5 + 0.25
    first, slot = case.num_tokens, len(args["alpha"])
    args["alpha"] = torch.cat([args["alpha"], alphas.to(device)])
    rows, slots = args["rows"].clone(), args["slots"].clone()
    line = 0
    for i, count in enumerate(own):
        if not count:
            continue
        rows[i], slots[i] = first + line, slot + line
        line += count
        if case.kv_lens[i]:
            block, place = _place(args, i, case.kv_lens[i], block_size)
            for cache in (key_cache, value_cache):
                cache[block, place] = torch.full((), float("nan")).to(cache.dtype)
    room = Caches([(key_cache, value_cache)]).keep(total if kept is None else kept)
    kept_rows, where = room.layer(0)
    sides = Sides(
        own=torch.tensor(own, dtype=torch.int32, device=device),
        first=first,
        key=random(first + total, num_kv_heads, dim),
        value=random(first + total, num_kv_heads, dim),
        kept=kept_rows,
        where=where,
        k_scale=args.get("k_scale"),
    )
    args |= {"key_cache": key_cache, "value_cache": value_cache}
    args |= {"rows": rows, "slots": slots, "sides": sides}
    return Case(args, first + total, case.kv_lens)


def expected_sides(case: Case, attention: Any) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """(output in float64, (side row, cache block, place in it) of each), an entry at a time by an
    attention that knows of no side rows: theirs are put into the cache first."""
    args = {k: v for k, v in case.args.items() if k != "sides"}
    sides, out = case.args["sides"], case.empty_out(torch.float64)
    places = []
    lists = ("rows", "reqs", "kv_lens", "slots", "span_starts", "span_lens", "rules", "heads")
    for i, count in enumerate(sides.own.tolist()):
        for j in range(max(1, count)):
            one = {name: args[name][i : i + 1].clone() for name in lists}
            one["rows"] += j
            one["slots"] += j
            caches = {name: _same_layout(args[name]) for name in ("key_cache", "value_cache")}
            if count and case.kv_lens[i]:
                row = int(one["rows"])
                block, place = _place(args, i, case.kv_lens[i], caches["key_cache"].shape[1])
                for cache, rows, scale in (
                    (caches["key_cache"], sides.key, sides.k_scale),
                    (caches["value_cache"], sides.value, args.get("v_scale")),
                ):
                    cache[block, place] = as_cached(rows[row], cache.dtype, scale)
                places.append((row - sides.first, block, place))
            attention(out, **(args | one | caches))
    return out, places


def as_cached(x: torch.Tensor, dtype: torch.dtype, scale: Any) -> torch.Tensor:
    """What vLLM writes into a cache of this dtype."""
    if dtype.itemsize > 1:
        return x.to(dtype)
    top = torch.finfo(dtype).max
    scaled = x.float() / (1.0 if scale is None else scale)
    return scaled.clamp(-top, top).to(dtype)


def _place(args: dict[str, Any], i: int, kv_len: int, block_size: int) -> tuple[int, int]:
    number, place = divmod(kv_len - 1, block_size)
    return int(args["block_table"][int(args["reqs"][i]), number]), place


def _same_layout(cache: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides."""
    base = cache._base if cache._base is not None else cache
    return base.clone().as_strided(cache.shape, cache.stride(), cache.storage_offset())
