"""From the unsteered first token's logits to alpha. Stays on the logits' device, no sync.

Source: AdaptVis (arXiv 2503.01773); margin and entropy are this project's alternatives.
"""

from __future__ import annotations

import math

import torch

from adaptvis_vllm.steering.fields import CONFIDENCES, DECIMALS_MAX

# Index of a kind in the tensors of `confidences`.
KIND_IDS = {kind: i for i, kind in enumerate(CONFIDENCES)}


def option_logits(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logarithms of what options are worth: the softmax of a row is p(option).

    logits: [R, V], raw. tokens: [R, K, T] int64, of each row's options, -1 for none. Returns [R, K]
    float32, -inf for an option without tokens.
    """
    each = logits.float().gather(1, tokens.clamp(min=0).flatten(1)).view(tokens.shape)
    return each.masked_fill(tokens < 0, -math.inf).logsumexp(-1)


def confidence(
    logits: torch.Tensor, kind: str = "max_prob", sizes: torch.Tensor | None = None
) -> torch.Tensor:
    """How certain the model is, in [0, 1], growing with certainty.

    logits: [R, V], raw, any float dtype; computed in float32.
    sizes: [R], of options: how many of a row's V there are, the rest being -inf; None for all.
    kind, with p = softmax(logits): "max_prob" is max p, the paper's; "margin" the largest
        p minus the second; "entropy" 1 - H(p) / log V, which is 1 for V = 1.
    Returns [R] float32. ValueError for another kind.
    """
    logits = logits.float()
    size = logits.shape[-1]
    top = logits.topk(min(2, size), dim=-1).values
    shifted = logits - top[:, :1]
    total = shifted.exp().sum(-1)
    if kind == "max_prob":
        return 1 / total
    if kind == "margin":
        return (1 - (top[:, 1] - top[:, 0]).exp()) / total if size > 1 else 1 / total
    if kind == "entropy":
        if size == 1:
            return 1 / total
        logp = shifted - total.log()[:, None]
        # A masked token has log p = -inf and p = 0; it adds nothing to H.
        entropy = -(logp.exp() * logp.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
        most = math.log(size) if sizes is None else sizes.float().log()
        return (1 - entropy / most).clamp(0, 1)
    raise ValueError(f"confidence must be one of {', '.join(CONFIDENCES)}, not {kind!r}")


def confidences(
    logits: torch.Tensor,
    kind_ids: torch.Tensor,
    kinds: set[str],
    sizes: torch.Tensor | None = None,
) -> torch.Tensor:
    """`confidence` for rows of different kinds.

    logits: [R, V]. kind_ids: [R] int, `KIND_IDS` on the same device. kinds: those that
    occur among them, known on the host, so that no other is computed.
    Returns [R] float32.
    """
    out = torch.zeros(logits.shape[0], dtype=torch.float32, device=logits.device)
    for kind in sorted(kinds):
        values = confidence(logits, kind, sizes)
        out = values if len(kinds) == 1 else torch.where(kind_ids == KIND_IDS[kind], values, out)
    return out


def measures(logits: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
    """`confidence` of every kind, in the order of `CONFIDENCES`: [R, V] -> [3, R] float32."""
    return torch.stack([confidence(logits, kind, sizes) for kind in CONFIDENCES])


def best(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable token and its probability: [R, V] -> [R] int32, [R] float32."""
    return logits.argmax(-1).int(), confidence(logits, "max_prob")


def choose_alpha(
    conf: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    threshold: torch.Tensor,
    decimals: torch.Tensor,
) -> torch.Tensor:
    """low where the confidence is < threshold, else high.

    conf, low, high, threshold: [R] float32. decimals: [R] int, -1 for no rounding.
    Returns [R] float32.

    Rounding is half to even on the exact decimal value, as Python's round and numpy's do
    with a float: float32 times 10**6 is exact in float64. The comparison is in float32,
    where a rounded 0.4 and a threshold of 0.4 are the same number.
    """
    return torch.where(is_low(conf, threshold, decimals), low, high).float()


def is_low(conf: torch.Tensor, threshold: torch.Tensor, decimals: torch.Tensor) -> torch.Tensor:
    """[R] bool, whether `choose_alpha` takes low."""
    return rounded(conf, decimals) < threshold.float()


def rounded(conf: torch.Tensor, decimals: torch.Tensor) -> torch.Tensor:
    """conf [R] float32 rounded to decimals [R] int places, -1 for none; [R] float32."""
    places = decimals.clamp(min=0, max=DECIMALS_MAX).double()
    scale = torch.pow(torch.full_like(places, 10.0), places).round()
    return torch.where(decimals >= 0, ((conf.double() * scale).round() / scale).float(), conf)
