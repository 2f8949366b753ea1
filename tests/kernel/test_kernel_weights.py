"""Attention weights of single rows: Triton (interpreted) and C++ against torch in float64."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from adaptvis_vllm.kernels import attention_weights_reference
from adaptvis_vllm.kernels.testing import Case, as_cached, image_mask, make_case

KV_LENS = [1, 17, 64, 200]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "GQA": {"heads": (8, 2), "dim": 32},
    "one head a group": {"heads": (3, 3), "dim": 80},
    "window": {"window": 50, "spans": "random"},
    "soft cap": {"soft_cap": 5.0, "spans": "all"},
    "window and soft cap": {"window": 30, "soft_cap": 2.0, "spans": "pairs"},
    "no image": {"spans": "none"},
    "kv heads first": {"layout": "hnd"},
    "fused": {"layout": "fused", "spans": "hundreds"},
    "rules and heads": {"rule": None, "steered": "some", "spans": "random"},
    "heads of two words": {"rule": None, "steered": "some", "heads": (40, 4), "dim": 32},
    "bfloat16": {"dtype": torch.bfloat16},
    "float8": {"kv_dtype": torch.float8_e4m3fn, "k_scale": 0.5},
    "float8 e5m2": {"kv_dtype": torch.float8_e5m2, "k_scale": torch.tensor(2.0)},
}


def captured(case: Case, spans: str = "middle", own: tuple[int, ...] = (0, 1, 0, 1)) -> Any:
    """The arguments of `attention_weights` for a case of `steered_attention`: maps of all image
    positions and of two more, one entry left out, some rows with keys of their own."""
    args = dict(case.args)
    for name in ("value_cache", "v_scale", "max_kv_len"):
        args.pop(name, None)
    g = torch.Generator().manual_seed(7)
    words, starts, lens = (args[n] for n in ("span_words", "span_starts", "span_lens"))
    positions: list[int] = []
    pos_starts, pos_lens, offsets = [], [], []
    size, heads = 3, args["query"].shape[1]  # the list does not begin at an even place
    for i, kv_len in enumerate(case.kv_lens):
        bits = words[starts[i] : starts[i] + lens[i]].tolist()
        listed = [p for p in range(kv_len) if p // 32 < len(bits) and bits[p // 32] >> p % 32 & 1]
        listed = sorted({*listed, 0, kv_len - 1})
        pos_starts.append(len(positions))
        pos_lens.append(len(listed))
        positions += listed
        offsets.append(-1 if i == 2 else size)
        size += heads * (len(listed) + 2)
    int32 = {"pos_starts": pos_starts, "pos_lens": pos_lens, "positions": positions, "own": own}
    args |= {name: torch.tensor(values, dtype=torch.int32) for name, values in int32.items()}
    args["offsets"] = torch.tensor(offsets)
    shape = (args["query"].shape[0], *args["key_cache"].shape[2:])
    args["key"] = torch.randn(shape, generator=g).to(args["query"].dtype)
    return args, size


def expected(args: dict[str, Any], size: int) -> torch.Tensor:
    """In float64; own keys as the cache would give them back."""
    out = torch.full((size,), torch.nan, dtype=torch.float64)
    key = as_cached(args["key"], args["key_cache"].dtype, args.get("k_scale"))
    attention_weights_reference(out, **{**args, "key": key})
    return out


@pytest.mark.parametrize("name", CASES)
def test_triton(name: str, attention_weights: Any) -> None:
    options = dict(CASES[name])
    scale = options.pop("k_scale", None)
    case = make_case(kv_lens=KV_LENS, **options)
    args, size = captured(case)
    args |= {} if scale is None else {"k_scale": scale}
    want = expected(args, size)
    out = torch.full((size,), torch.nan, dtype=torch.float16)
    own = {} if scale is None else {"k_own": scale}
    attention_weights(out, **args, **own)
    assert torch.equal(out.isnan(), want.isnan())  # nothing else is written
    tolerance = 1e-2 if options.get("dtype") is torch.bfloat16 else 1e-3
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=1e-2, equal_nan=True)


def test_weights_of_a_row_sum_to_one(attention_weights: Any) -> None:
    """Image positions, the first token and the rest; with a sink they leave it its share."""
    case = make_case(kv_lens=[100], spans="middle", heads=(2, 1))
    args, _ = captured(case, own=(0,))
    image = torch.tensor([p for p in args["positions"].tolist() if 20 <= p < 86], dtype=torch.int32)
    args |= {"positions": image, "pos_lens": torch.tensor([len(image)], dtype=torch.int32)}
    args["offsets"] = torch.tensor([0])
    out = torch.empty(2 * (len(image) + 2), dtype=torch.float16)
    attention_weights(out, **args)
    assert out.view(2, -1).double().sum(1).tolist() == pytest.approx([1, 1], abs=2e-3)
    attention_weights(out, **args, sinks=torch.tensor([0.0, 30.0]))
    one, other = out.view(2, -1).double().sum(1).tolist()
    assert 0.5 < one < 1
    assert other == pytest.approx(0, abs=1e-3)


def test_sinks(attention_weights: Any) -> None:
    case = make_case(kv_lens=KV_LENS, heads=(4, 2))
    args, size = captured(case)
    args["sinks"] = torch.tensor([0.0, 1.0, -2.0, 4.0])
    out = torch.full((size,), torch.nan, dtype=torch.float16)
    attention_weights(out, **args)
    want = expected(args, size)
    torch.testing.assert_close(out.double(), want, atol=1e-3, rtol=1e-2, equal_nan=True)


def cpu_cache(args: dict[str, Any], packed: bool) -> torch.Tensor:
    """[blocks, kv_heads, block, 2 * dim] as vLLM's CPU backend lays out these keys."""
    key = args["key_cache"].transpose(1, 2)  # [blocks, heads, block, dim]
    blocks, heads, block, dim = key.shape
    if packed:
        page = key.view(blocks, heads, block // 16, 16, dim // 2, 2).transpose(3, 4)
    else:
        page = key.transpose(2, 3)
    cache = torch.full((blocks, heads, 2, block * dim), torch.nan, dtype=key.dtype)
    cache[:, :, 0] = page.reshape(blocks, heads, -1)
    return cache.view(blocks, heads, block, 2 * dim)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({}, False),
        ({"heads": (8, 2), "dim": 32, "block_size": 32}, False),
        ({"window": 50, "spans": "random"}, False),
        ({"soft_cap": 3.0}, False),
        ({"rule": None, "steered": "some", "heads": (40, 4), "spans": "random"}, False),
        ({"dtype": torch.float16}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"dtype": torch.bfloat16, "block_size": 32}, True),
        ({"dtype": torch.bfloat16, "window": 20, "heads": (6, 3)}, True),
    ],
)
def test_compiled(options: dict[str, Any], packed: bool) -> None:
    from adaptvis_vllm.kernels.cpu.weights import weigh_rows

    case = make_case(kv_lens=KV_LENS, **options)
    args, size = captured(case)
    args["sinks"] = torch.linspace(-1, 2, args["query"].shape[1])
    want = expected(args, size)
    out = torch.full((size,), torch.nan, dtype=torch.float16)
    cache = cpu_cache(args, packed)
    key = args.pop("key").index_select(0, args["rows"])
    del args["key_cache"]
    weigh_rows(out, kv_cache=cache, key=key, packed=packed, **args)
    assert torch.equal(out.isnan(), want.isnan())
    torch.testing.assert_close(out.double(), want, atol=1e-3, rtol=1e-2, equal_nan=True)


def test_wrong_tensors_are_refused_before_memory_is_read() -> None:
    from adaptvis_vllm.kernels.cpu.weights import weigh_rows

    case = make_case(kv_lens=KV_LENS)
    args, size = captured(case)
    cache = cpu_cache(args, packed=False)
    key = args.pop("key").index_select(0, args["rows"])
    del args["key_cache"]
    out = torch.empty(size, dtype=torch.float16)
    good = {"output": out, "kv_cache": cache, "key": key, "packed": False, **args}
    for name, bad in {
        "output": out.float(),
        "kv_cache": cache[..., ::2],
        "key": key[:2],
        "offsets": args["offsets"].int(),
        "positions": args["positions"].long(),
        "rows": args["rows"].float(),
        "rules": args["rules"].float(),
        "heads": args["heads"][:, :0],
        "query": args["query"].transpose(1, 2).contiguous().transpose(1, 2),
    }.items():
        with pytest.raises(ValueError, match=name if name != "kv_cache" else "query"):
            weigh_rows(**{**good, name: bad})


def test_image_masks_of_these_cases_hold_the_first_position() -> None:
    """So that the first token's share is tried with 0 and without."""
    g = torch.Generator().manual_seed(0)
    assert image_mask("all", 4, g)[0]
    assert not image_mask("middle", 64, g)[0]
