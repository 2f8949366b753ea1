"""The CPU rows against the formula and vLLM's own kernel, in every KV cache layout.

K and V are written by vLLM's own operator, so the layouts are vLLM's, not ours. Every test is
run on the compiled rows and on those in torch.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adaptvis_vllm.kernels.cpu import build as kernel
from adaptvis_vllm.kernels.testing import head_bits

from adaptvis_vllm import plugin
from adaptvis_vllm.engine.attention import cpu
from adaptvis_vllm.engine.plan import StepRows
from adaptvis_vllm.steering.span import pack_bits

plugin.register()

LAYOUTS = [
    pytest.param(torch.float32, 64, True, "vec", id="float32"),
    pytest.param(torch.float16, 64, True, "vec", id="float16"),
    pytest.param(torch.bfloat16, 64, True, "amx", id="bfloat16-amx"),
    pytest.param(torch.bfloat16, 64, False, "vec", id="bfloat16-without-amx"),
    pytest.param(torch.float32, 80, True, "vec16", id="float32-head80"),
    pytest.param(torch.bfloat16, 80, True, "vec16", id="bfloat16-head80"),
    pytest.param(torch.bfloat16, 128, True, "amx", id="bfloat16-head128"),
]
VARIANTS = {
    "plain": {},
    "mha": {"heads": 2, "kv_heads": 2},
    "gqa7": {"heads": 14, "kv_heads": 2},
    "window": {"window": 70},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "block64": {"block": 64},
    "rules-heads": {"heads": 8, "mixed": True},
    "rules-heads40": {"heads": 40, "kv_heads": 8, "mixed": True},
    "rules-heads-all-options": {"window": 70, "softcap": 3.0, "sinks": True, "mixed": True},
}
RULES = {
    0: lambda s, alpha: s * alpha,
    1: lambda s, alpha: s + np.log(alpha),
    2: lambda s, alpha: s + alpha * s.abs(),
}


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled":
        assert cpu.compiled(), kernel.problem()
    else:
        monkeypatch.setattr(cpu, "compiled", lambda: False)


class Step:
    """One layer's cache, queries and metadata of five requests, as vLLM's backend has them."""

    def __init__(
        self,
        dtype: torch.dtype,
        dim: int,
        isa: str,
        *,
        heads: int = 8,
        kv_heads: int = 2,
        block: int = 32,
        window: int = -1,
        softcap: float = 0.0,
        sinks: bool = False,
        mixed: bool = False,
    ) -> None:
        from vllm import _custom_ops as ops

        torch.manual_seed(0)
        self.lens = [1, 5, 123, 2 * block, 130]
        count = len(self.lens)
        per_row = -(-max(self.lens) // block)
        total = 1 + count * per_row
        self.kv_cache = torch.zeros(total, kv_heads, block, 2 * dim, dtype=dtype)
        self.table = (1 + torch.randperm(total - 1)).view(count, per_row).int()
        self.k = [torch.randn(n, kv_heads, dim).to(dtype) for n in self.lens]
        self.v = [torch.randn(n, kv_heads, dim).to(dtype) for n in self.lens]
        pages = self.kv_cache.view(total, kv_heads, 2 * block, dim)
        self.pages = pages.chunk(2, dim=2)
        for row, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            positions = torch.arange(len(k))
            slots = self.table[row][positions // block].long() * block + positions % block
            ops.cpu_attn_reshape_and_cache(
                k, v, *self.pages, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
            )
        self.query = torch.randn(count + 2, heads, dim).to(dtype)
        self.impl = SimpleNamespace(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=dim,
            scale=dim**-0.5,
            sliding_window=window,
            logits_soft_cap=softcap,
            sinks=torch.randn(heads) if sinks else None,
        )
        self.layer = SimpleNamespace(isa=isa, impl=self.impl)
        self.metadata = SimpleNamespace(block_table=self.table)
        self.rows = [0, 2, 3, 4, 6]  # the tokens between are somebody else's
        self.rules = [1, 2, 1, 2, 0] if mixed else [0] * count
        self.on = torch.rand(count, heads) < (0.5 if mixed else 2)

    def step_rows(self, alphas: list[float], spans: list[list[int]]) -> StepRows:
        words = [pack_bits(np.array(span, np.int64)) for span in spans]
        lens = [len(w) for w in words]
        packed = np.concatenate([*words, np.zeros(1, np.int32)])

        def ints(values: Any) -> torch.Tensor:
            return torch.tensor(list(values), dtype=torch.int32)

        return StepRows(
            rows=ints(self.rows),
            reqs=ints(range(len(self.lens))),
            kv_lens=ints(self.lens),
            slots=ints(reversed(range(len(alphas)))),
            alpha=torch.tensor(alphas[::-1]),
            span_words=torch.from_numpy(packed),
            span_starts=ints(np.cumsum([0, *lens[:-1]])),
            span_lens=ints(lens),
            rules=ints(self.rules),
            heads=head_bits(self.on),
            own=ints([0] * len(lens)),
            max_kv_len=max(self.lens),
        )

    def recompute(self, output: torch.Tensor, rows: StepRows, layer: Any = None) -> None:
        none = torch.empty(0)
        tensors = (self.query, none, none, self.kv_cache, self.metadata, output, rows)
        cpu.CpuLayer(layer or self.layer, 0, None).recompute(*tensors)

    def expected(self, alphas: list[float], spans: list[list[int]]) -> torch.Tensor:
        """[R, heads, dim] float64: the formula, row by row."""
        impl, out = self.impl, []
        for row, token in enumerate(self.rows):
            k, v = self.k[row].double(), self.v[row].double()
            group = impl.num_heads // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            logits = torch.einsum("hd,nhd->hn", self.query[token].double(), k) * impl.scale
            steered = RULES[self.rules[row]](logits[:, spans[row]], alphas[row])
            logits[:, spans[row]] = steered.where(self.on[row, :, None], logits[:, spans[row]])
            if impl.logits_soft_cap:
                logits = impl.logits_soft_cap * torch.tanh(logits / impl.logits_soft_cap)
            if impl.sliding_window > 0:
                logits[:, : max(0, len(k) - impl.sliding_window)] = float("-inf")
            if impl.sinks is not None:
                logits = torch.cat([logits, impl.sinks.double()[:, None]], 1)
            weights = logits.softmax(-1)[:, : len(k)]
            out.append(torch.einsum("hn,nhd->hd", weights, v))
        return torch.stack(out)


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "dim", "amx", "isa"), LAYOUTS)
def test_rows(
    dtype: torch.dtype,
    dim: int,
    amx: bool,
    isa: str,
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has no AMX")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    block = VARIANTS[variant].get("block", 32)
    assert _get_attn_isa(dtype, block, dim, "auto") == isa
    step = Step(dtype, dim, isa, **VARIANTS[variant])
    alphas = [2.0, 0.3, 3.0, 0.5, 1.7]
    spans = [[0], [], list(range(30, 67)), list(range(2 * block)), [0, 3, 31, 32, 33, 64, 129]]
    output = torch.full_like(step.query, float("nan"))
    keep = output[[1, 5]].clone()
    before = step.kv_cache.clone()
    rows = step.step_rows(alphas, spans)
    step.recompute(output, rows)
    assert relative(output[step.rows], step.expected(alphas, spans)) < tolerance(dtype)
    assert torch.equal(output[[1, 5]].isnan(), keep.isnan())
    assert torch.equal(step.kv_cache, before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "dim", "amx", "isa"), LAYOUTS)
def test_side_rows(dtype: torch.dtype, dim: int, amx: bool, isa: str, variant: str) -> None:
    """Pairs with keys and values of their own at the last position; the chosen ones are written
    where vLLM looks for them, and nothing else is."""
    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has no AMX")
    step = Step(dtype, dim, isa, **VARIANTS[variant])
    alphas = [2.0, 0.3, 3.0, 0.5, 1.7]
    spans = [[0], [4], list(range(30, 67)), [], [0, 3, 31, 32, 33, 64, 129]]
    # Entries 1, 2 and 4 become pairs behind the seven tokens.
    pairs, first = [1, 2, 4], len(step.query)
    heads, kv_heads = step.query.shape[1], step.kv_cache.shape[1]
    step.query = torch.cat([step.query, torch.randn(6, heads, dim).to(dtype)])
    key, value = (torch.randn(first + 6, kv_heads, dim).to(dtype) for _ in "kv")
    rows = step.step_rows(alphas, spans)
    rows.slots = torch.tensor(range(10, 5, -1), dtype=torch.int32)  # the list is turned round
    rows.alpha = torch.tensor([0.4, 2.5, 0.6, 1.9, 0.8, 1.2, *alphas[::-1]])
    for number, entry in enumerate(pairs):
        rows.rows[entry] = first + 2 * number
        rows.slots[entry] = 2 * number
        rows.own[entry] = 2
    rows.sides = slice(first, first + 6)
    base = [step.rows[entry] for entry in pairs]
    step.metadata.slot_mapping = torch.full((first,), -1)
    block = step.pages[1].shape[2]
    for entry, row in zip(pairs, base, strict=True):
        page, place = divmod(step.lens[entry] - 1, block)
        step.metadata.slot_mapping[row] = int(step.table[entry, page]) * block + place
    plan = SimpleNamespace(base=torch.tensor(base), commits=[], choices=base)
    step.impl.do_kv_cache_update = lambda layer, k, v, cache, slots: write(step, isa, k, v, slots)
    output = torch.full_like(step.query, float("nan"))
    tensors = (step.query, key, value, step.kv_cache, step.metadata, output, rows)
    cpu.CpuLayer(step.layer, 0, SimpleNamespace(plan=plan)).recompute(*tensors)
    assert output[[1, 2, 3, 5, 6]].isnan().all()
    in_place = [step.rows[0], step.rows[3]]
    wanted = step.expected([2.0, 0.0, 0.0, 0.5, 0.0], spans)[[0, 3]]
    assert relative(output[in_place], wanted) < tolerance(dtype)
    clean = step.kv_cache.clone()
    for number, entry in enumerate(pairs):
        for j in range(2):
            row = first + 2 * number + j
            step.rows = [row] * 5
            step.k[entry][-1], step.v[entry][-1] = key[row], value[row]
            alpha = rows.alpha[2 * number + j].item()
            mine = step.expected([alpha] * 5, spans)[entry]
            assert relative(output[row], mine) < tolerance(dtype), (entry, j)
    assert torch.equal(step.kv_cache, clean)
    (commit,) = plan.commits
    commit(torch.tensor([1, 2, 5]))
    for number, entry in zip((1, 2, 5), pairs, strict=True):
        step.k[entry][-1], step.v[entry][-1] = key[first + number], value[first + number]
    fresh = Step(dtype, dim, isa, **VARIANTS[variant])
    for entry in range(5):
        positions = torch.arange(step.lens[entry])
        slots = step.table[entry][positions // block].long() * block + positions % block
        write(fresh, isa, step.k[entry], step.v[entry], slots)
    assert torch.equal(step.kv_cache, fresh.kv_cache)


def write(step: Step, isa: str, key: torch.Tensor, value: torch.Tensor, slots: Any) -> None:
    """vLLM's own operator."""
    from vllm import _custom_ops as ops

    ops.cpu_attn_reshape_and_cache(
        key, value, *step.pages, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
    )


@pytest.mark.parametrize("variant", ["plain", "window", "softcap"])
@pytest.mark.parametrize(("dtype", "dim", "amx", "isa"), LAYOUTS)
def test_alpha_one_is_vllms_own_kernel(
    dtype: torch.dtype, dim: int, amx: bool, isa: str, variant: str
) -> None:
    from vllm import _custom_ops as ops

    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has no AMX")
    step = Step(dtype, dim, isa, **VARIANTS[variant])
    query = step.query[step.rows].contiguous()
    count, heads = query.shape[:2]
    seq_lens = torch.tensor(step.lens, dtype=torch.int32)
    starts = torch.arange(count + 1, dtype=torch.int32)
    window = step.impl.sliding_window
    scheduled = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=count,
        num_heads=heads,
        num_kv_heads=step.kv_cache.shape[1],
        head_dim=dim,
        seq_lens=seq_lens,
        dtype=dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=window,
        isa=isa,
        enable_kv_split=True,
    )
    theirs = torch.empty_like(query)
    ops.cpu_attention_with_kv_cache(
        query=query,
        key_cache=step.pages[0],
        value_cache=step.pages[1],
        output=theirs,
        query_start_loc=starts,
        seq_lens=seq_lens,
        scale=step.impl.scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=window,
        block_table=step.table,
        softcap=step.impl.logits_soft_cap,
        scheduler_metadata=scheduled,
        s_aux=None,
        k_scale=1.0,
        v_scale=1.0,
        kv_cache_dtype="auto",
    )
    output = torch.full_like(step.query, float("nan"))
    rows = step.step_rows([1.0] * count, [[0, 1]] * count)
    step.recompute(output, rows)
    assert relative(output[step.rows], theirs) < tolerance(dtype)


@pytest.mark.parametrize(
    "variant", ["plain", "mha", "window", "block64", "block256", "rules-heads"]
)
@pytest.mark.parametrize("dim", [32, 80, 192])
def test_pages_of_the_amx_layout(dim: int, variant: str) -> None:
    """Without AMX too: the pages of another layout put into it, as vLLM's header describes."""
    options = {"block": 256} if variant == "block256" else VARIANTS[variant]
    step = Step(torch.bfloat16, dim, "vec16", **options)
    spans = [[0], [], list(range(30, 67)), list(range(64)), [0, 3, 31, 32, 33, 64, 129]]
    outputs = []
    for isa in ("vec16", "amx"):
        if isa == "amx":
            pack(step)
        rows = step.step_rows([2.0, 0.3, 3.0, 0.5, 1.7], spans)
        outputs.append(torch.zeros_like(step.query))
        step.recompute(outputs[-1], rows, SimpleNamespace(isa=isa, impl=step.impl))
    assert relative(outputs[1], outputs[0]) < 1e-3
    assert outputs[0][step.rows].norm() > 1


def pack(step: Step) -> None:
    """K [dim, block] -> [block/16, dim/2, 16, 2], V [block, dim] -> [dim/16, block/2, 16, 2];
    NaN behind the ends of rows."""
    blocks, heads, block, twice = step.kv_cache.shape
    dim = twice // 2
    k, v = step.kv_cache.view(blocks, heads, 2, -1).unbind(2)
    k, v = k.view(blocks, heads, dim, block), v.view(blocks, heads, block, dim)
    for row, length in enumerate(step.lens):
        if length % block:
            page = step.table[row, (length - 1) // block]
            k[page, :, :, length % block :] = float("nan")
            v[page, :, length % block :] = float("nan")
    for lines in (k, v):
        high, wide = lines.shape[2:]
        tiles = lines.view(blocks, heads, high // 2, 2, wide // 16, 16)
        lines.copy_(tiles.permute(0, 1, 4, 2, 5, 3).reshape(lines.shape).clone())


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_nothing(threads: int) -> None:
    step = Step(torch.float32, 64, "vec", heads=12, kv_heads=6)
    before = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            outputs.append(torch.zeros_like(step.query))
            rows = step.step_rows([2.0] * 5, [[0]] * 5)
            step.recompute(outputs[-1], rows)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(*outputs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_16_bits_are_not_rounded(dtype: torch.dtype) -> None:
    """Large logits that differ by less than 16 bits tell apart choose the right value."""
    step = Step(dtype, 64, "vec", heads=2, kv_heads=2)
    line = step.rows[3]  # 64 positions
    step.query[line] = 16.0
    # [blocks, heads, dim, block]: logits of 16 * 64 * k / 8, all 128 but one of 128.5.
    k = torch.full((2, 2, 64, 32), 1.0, dtype=dtype)
    k[0, :, 0, 5] = 1.25
    v = torch.zeros(2, 2, 32, 64, dtype=dtype)
    v[0, :, 5] = 1.0
    step.pages[0][step.table[3, :2].long()] = k.view(2, 2, 32, 64)
    step.pages[1][step.table[3, :2].long()] = v
    output = torch.zeros_like(step.query)
    rows = step.step_rows([1.0] * 5, [[0]] * 5)
    step.recompute(output, rows)
    weight = np.exp(0.5) / (np.exp(0.5) + 63)
    assert output[line].float().numpy() == pytest.approx(weight, rel=tolerance(dtype))


def test_values_behind_a_row_do_not_leak() -> None:
    """NaN in the free part of the last block, left by a neighbour, changes nothing."""
    step = Step(torch.float32, 64, "vec")
    alphas, spans = [2.0] * 5, [[0]] * 5
    clean = torch.zeros_like(step.query)
    step.recompute(clean, step.step_rows(alphas, spans))
    k, v = step.pages
    block = v.shape[2]
    for row, length in enumerate(step.lens):
        page = step.table[row, (length - 1) // block]
        if length % block:
            v[page, :, length % block :] = float("nan")
            k[page].view(k.shape[1], 64, block)[:, :, length % block :] = float("nan")
    dirty = torch.zeros_like(step.query)
    step.recompute(dirty, step.step_rows(alphas, spans))
    assert torch.equal(clean, dirty)


def test_a_window_without_image_positions_changes_nothing() -> None:
    """Rows whose window begins behind the image: alpha 3 is alpha 1, to the bit."""
    step = Step(torch.float32, 64, "vec", window=20)
    spans = [[]] * 2 + [list(range(4, 40))] * 3
    outputs = []
    for alpha in (1.0, 3.0):
        output = torch.zeros_like(step.query)
        rows = step.step_rows([alpha] * 5, spans)
        step.recompute(output, rows)
        outputs.append(output)
    assert torch.equal(*outputs)
    assert all(length - 20 >= 40 for length in step.lens[2:])
