"""What would otherwise read the wrong memory in silence."""

import torch

from .config import RULES


def check(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    lists: tuple[torch.Tensor, ...],
    alpha: torch.Tensor,
    sinks: torch.Tensor | None,
    rule: str,
) -> None:
    """ValueError for tensors that are not as `launch.Layer` says."""
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}, expected one of {', '.join(RULES)}")
    if query.shape[1] % key_cache.shape[2]:
        raise ValueError(f"{query.shape[1]} heads do not divide into {key_cache.shape[2]} KV heads")
    if out.stride(2) != 1 or query.stride(2) != 1:
        raise ValueError("the head dimension of out and query must be contiguous")
    if key_cache.shape != value_cache.shape or key_cache.dtype != value_cache.dtype:
        raise ValueError("key_cache and value_cache must have one shape and dtype")
    if not key_cache.dtype.is_floating_point:
        raise ValueError(f"the cache holds {key_cache.dtype}: view fp8 caches as a float8 dtype")
    if alpha.dtype != torch.float32:
        raise ValueError(f"alpha must be float32, not {alpha.dtype}")
    for t in lists:
        if t.dtype != torch.int32 or not t.is_contiguous():
            raise ValueError("index tensors and span_words must be contiguous int32")
    if block_table.dtype != torch.int32 or block_table.stride(1) != 1:
        raise ValueError("block_table must be int32 with contiguous lines")
    if sinks is not None and (sinks.shape != query.shape[1:2] or not sinks.is_contiguous()):
        raise ValueError("sinks must be one contiguous logit per head")
