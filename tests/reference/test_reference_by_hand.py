"""The oracle itself, against arithmetic done by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.images import make_images
from checkpoints.llava import make_llava
from support.llama_by_hand import last_logprobs
from support.recorder import Recorder

from adaptvis_vllm import ScalingVis, SteeringParams
from adaptvis_vllm.reference.attention import Steering, _steered_attention
from adaptvis_vllm.reference.model import ReferenceModel

TWO = "USER: <image>\nand <image>\nWhich is brighter? ASSISTANT:"


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("params", [
    None,
    ScalingVis(0.3),
    ScalingVis(2.5),
    ScalingVis(2.5, span="interval"),
    ScalingVis(0.5, layers="1"),
], ids=lambda p: p.key() if p else "plain")  # fmt: skip
def test_first_token_by_hand(
    tmp_path_factory: Any, kv_heads: int, params: SteeringParams | None
) -> None:
    path = tmp_path_factory.getbasetemp() / f"two-layers-{kv_heads}"
    if not path.exists():
        make_llava(path, layers=2, kv_heads=kv_heads, seed=kv_heads)
    reference = ReferenceModel(path)
    images = make_images(2, first=8)
    with Recorder(reference) as recorder:
        answer = reference.generate(
            TWO, images, params, max_tokens=1, logprobs=reference_size(path)
        )
    # Two images of 16 tokens, and the text between them.
    first, last = answer.image_positions[0], answer.image_positions[-1]
    assert len(answer.image_positions) == 32
    assert last - first + 1 > 32
    columns = answer.image_positions
    if params and params.span == "interval":
        columns = list(range(first, last + 1))
    layers = set(params.head_masks(2)) if params else set()
    expected = last_logprobs(
        path,
        recorder.embeddings[0].numpy(),
        head_dim=32,
        alpha=dict.fromkeys(layers, (params and params.alpha) or 1.0),
        columns=columns,
    )
    ours = np.empty_like(expected)
    for token, logprob in answer.top_logprobs[0]:
        ours[token] = logprob
    np.testing.assert_allclose(ours, expected, atol=5e-5)


def reference_size(path: Path) -> int:
    """The vocabulary's size: all log-probabilities."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).text_config.vocab_size


@pytest.mark.parametrize(
    ("heads", "kv", "rows", "dim"), [(1, 1, 5, 3), (6, 2, 7, 5), (4, 4, 23, 32)],
    ids=["H1", "H6-G3", "H4"],
)  # fmt: skip
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("window", [None, 3], ids=["full", "window"])
@pytest.mark.parametrize("sink", [None, 0.7], ids=["", "sinks"])
@pytest.mark.parametrize("rule", ["multiply", "add_log", "pai"])
def test_attention_by_hand(
    heads: int,
    kv: int,
    rows: int,
    dim: int,
    softcap: float | None,
    window: int | None,
    sink: float | None,
    rule: str,
) -> None:
    generator = torch.Generator().manual_seed(heads)
    q = torch.randn(1, heads, rows, dim, generator=generator) * 2
    k, v = (torch.randn(1, kv, rows, dim, generator=generator) for _ in range(2))
    columns = torch.arange(rows) % 3 == 1
    i, j = torch.arange(rows)[:, None], torch.arange(rows)
    visible = (j <= i) & (j > i - (window or rows))
    mask = torch.zeros(rows, rows).masked_fill(~visible, torch.finfo(torch.float32).min)
    steering = Steering()
    mask_of_heads = 0b101101
    steering.begin(2.5, rule, columns, {0: mask_of_heads}, generated=False)
    assert steering.claims(0, rows, rows)
    sinks = None if sink is None else torch.arange(heads) * sink
    options: dict[str, Any] = {"scaling": 0.3, "softcap": softcap, "s_aux": sinks}
    module = SimpleNamespace(layer_idx=0)
    out, weights = _steered_attention(steering, module, q, k, v, mask[None, None], **options)
    assert out.shape == (1, rows, heads, dim)
    assert weights.shape == (1, heads, rows, rows)
    assert not weights[:, :, ~visible].any()
    for head in range(heads):
        for row in range(rows):
            seen = [c for c in range(rows) if visible[row, c]]
            logits = []
            for c in seen:
                s = float(q[0, head, row] @ k[0, head * kv // heads, c]) * 0.3
                if row == rows - 1 and columns[c] and mask_of_heads >> head & 1:
                    s = {"multiply": s * 2.5, "add_log": s + math.log(2.5)}.get(
                        rule, s + 2.5 * abs(s)
                    )
                logits.append(softcap * math.tanh(s / softcap) if softcap else s)
            more = [] if sink is None else [head * sink]
            peak = max(logits + more)
            p = [math.exp(s - peak) for s in logits + more]
            p = [x / sum(p) for x in p][: len(seen)]
            want = sum(x * v[0, head * kv // heads, c] for x, c in zip(p, seen, strict=True))
            assert weights[0, head, row, seen].tolist() == pytest.approx(p, abs=1e-5)
            torch.testing.assert_close(out[0, row, head], want, atol=1e-5, rtol=1e-5)


def test_what_attention_refuses() -> None:
    x = torch.zeros(1, 1, 2, 2)
    steering = Steering()
    steering.begin(2, "multiply", torch.tensor([True, False]), {0: -1}, generated=False)
    with pytest.raises(NotImplementedError, match="position_bias"):
        _steered_attention(steering, SimpleNamespace(), x, x, x, None, position_bias=x)
