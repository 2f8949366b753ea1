"""`attention.paged` over caches laid out as vLLM's GPU backends lay them out.

All give their layers [blocks, kv_heads, block, 2 * head_dim]; what differs is the memory
behind it: positions or heads first (FlashInfer's and FlashAttention's NHD, and HND), other
layers' pages between the blocks, and fp8.
"""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adaptvis_vllm.engine.attention import paged
from adaptvis_vllm.engine.plan import StepRows
from adaptvis_vllm.steering.span import pack_bits

BLOCKS, HEADS, KV_HEADS, BLOCK, DIM = 12, 8, 2, 16, 64
LENS = [1, 20, 48, 61]
ALPHAS = [0.5, 3.0, 2.0, 0.3]
SPANS = [[0], list(range(3, 19)), [15, 16, 31, 32], []]


def hnd(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous()


def nhd(values: torch.Tensor) -> torch.Tensor:
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def packed(values: torch.Tensor) -> torch.Tensor:
    """Another layer's page after each block."""
    return torch.stack([values, torch.full_like(values, float("nan"))], 1)[:, 0]


def ints(values: list[int], device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.mark.parametrize("layout", [hnd, nhd, packed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("cache", ["auto", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("variant", ["plain", "window", "softcap-sinks"])
def test_layout(launch, monkeypatch, device, layout, cache, variant) -> None:
    compiled = importlib.import_module("adaptvis_vllm.kernels.gpu.launch")
    monkeypatch.setattr(compiled, "Layer", launch.Layer)
    torch.manual_seed(0)
    dtype = (
        torch.float32
        if cache == "auto"
        else getattr(torch, f"float{cache[2:]}".replace("8_e4m3", "8_e4m3fn"))
    )
    values = torch.randn(BLOCKS, KV_HEADS, BLOCK, 2 * DIM, device=device).to(dtype)
    stored = values if cache == "auto" else values.view(torch.uint8)
    kv_cache = layout(stored if layout is not packed else values).to(device)
    if cache != "auto" and layout is packed:
        kv_cache = kv_cache.view(torch.uint8)
    k_scale, v_scale = (1.0, 1.0) if cache == "auto" else (0.5, 2.0)
    query = torch.randn(6, HEADS, DIM, device=device)
    table = torch.randperm(BLOCKS - 1)[:11].repeat(4)[:16].view(4, 4).int().to(device) + 1
    words = [pack_bits(np.array(span, np.int64)) for span in SPANS]
    lens = [len(w) for w in words]
    tokens = [0, 2, 3, 5]
    rows = StepRows(
        rows=ints(tokens, device),
        reqs=ints([0, 1, 2, 3], device),
        kv_lens=ints(LENS, device),
        slots=ints([3, 2, 1, 0], device),
        alpha=torch.tensor(ALPHAS[::-1], device=device),
        span_words=torch.from_numpy(np.concatenate(words)).to(device),
        span_starts=ints(np.cumsum([0, *lens[:-1]]).tolist(), device),
        span_lens=ints(lens, device),
        rules=ints([0] * 4, device),
        heads=ints([-1] * 4, device)[:, None],
        own=ints([0] * 4, device),
        max_kv_len=max(LENS),
    )
    sinks = torch.randn(HEADS, device=device) if "sinks" in variant else None
    cap = 2.0 if "softcap" in variant else None
    window = 24 if variant == "window" else None
    impl = SimpleNamespace(
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_size=DIM,
        scale=DIM**-0.5,
        logits_soft_cap=cap,
        sinks=sinks,
    )
    layer = SimpleNamespace(
        impl=impl,
        kv_cache_dtype=cache,
        sliding_window=window,
        _k_scale=torch.tensor(k_scale, device=device),
        _v_scale=torch.tensor(v_scale, device=device),
    )
    out = torch.full_like(query, float("nan"))
    metadata = SimpleNamespace(block_table=table)
    none = torch.empty(0)
    steered = paged.PagedLayer(layer, 0, None)
    steered.recompute(query, none, none, kv_cache, metadata, out, rows)

    k, v = values.double().split(DIM, -1)
    for row, token in enumerate(tokens):
        pages = table[row].long()
        keys = k[pages].transpose(1, 2).reshape(-1, KV_HEADS, DIM)[: LENS[row]] * k_scale
        data = v[pages].transpose(1, 2).reshape(-1, KV_HEADS, DIM)[: LENS[row]] * v_scale
        keys, data = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (keys, data))
        logits = torch.einsum("hd,nhd->hn", query[token].double(), keys) * impl.scale
        logits[:, SPANS[row]] *= ALPHAS[row]
        if cap:
            logits = cap * torch.tanh(logits / cap)
        if window:
            logits[:, : max(0, LENS[row] - window)] = float("-inf")
        if sinks is not None:
            logits = torch.cat([logits, sinks.double()[:, None]], 1)
        wanted = torch.einsum("hn,nhd->hd", logits.softmax(-1)[:, : LENS[row]], data)
        error = (out[token].double() - wanted).norm() / wanted.norm()
        assert error < (1e-5 if cache == "auto" else 1e-2)
    assert out[[1, 4]].isnan().all()
