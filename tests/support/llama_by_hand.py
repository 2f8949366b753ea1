"""One forward pass of Llama in float64 NumPy, loops where they help: shares no code with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

EPS, THETA = 1e-6, 10000.0


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def rotate(x: np.ndarray) -> np.ndarray:
    """x: [T, heads, d]."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * THETA ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def last_logprobs(
    checkpoint: Path,
    embeddings: np.ndarray,
    head_dim: int,
    alpha: dict[int, float],
    columns: list[int],
) -> np.ndarray:
    """Log-probabilities [V] after the prompt's last token.

    embeddings: [T, hidden], image embeddings in place. alpha: per layer, 1 if absent, for
    the last row's logits towards `columns`.
    """
    w = {k: v.astype(np.float64) for k, v in load_file(checkpoint / "model.safetensors").items()}
    w = {k.removeprefix("language_model.").removeprefix("model."): v for k, v in w.items()}
    x = embeddings.astype(np.float64)
    length = len(x)
    layers = {int(k.split(".")[1]) for k in w if k.startswith("layers.")}
    for i in sorted(layers):
        layer = {k.removeprefix(f"layers.{i}."): v for k, v in w.items()}
        h = norm(x, layer["input_layernorm.weight"])
        q, k, v = (
            (h @ layer[f"self_attn.{p}_proj.weight"].T).reshape(length, -1, head_dim) for p in "qkv"
        )
        q, k = rotate(q), rotate(k)
        out = np.zeros_like(q)
        for head in range(q.shape[1]):
            kv = head * k.shape[1] // q.shape[1]
            for row in range(length):
                s = k[: row + 1, kv] @ q[row, head] / np.sqrt(head_dim)
                if row == length - 1:
                    s[columns] *= alpha.get(i, 1.0)
                p = np.exp(s - s.max())
                out[row, head] = p / p.sum() @ v[: row + 1, kv]
        x = x + out.reshape(length, -1) @ layer["self_attn.o_proj.weight"].T
        h = norm(x, layer["post_attention_layernorm.weight"])
        gate = h @ layer["mlp.gate_proj.weight"].T
        up = h @ layer["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp.down_proj.weight"].T
    logits = norm(x[-1], w["norm.weight"]) @ w["lm_head.weight"].T
    peak = logits.max()
    return logits - peak - np.log(np.exp(logits - peak).sum())
