"""What would otherwise read the wrong memory in silence."""

import torch


def check(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    lists: tuple[torch.Tensor, ...],
    alpha: torch.Tensor,
    sinks: torch.Tensor | None,
    heads: torch.Tensor,
) -> None:
    """ValueError for tensors that are not as `launch.Layer` says."""
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
    if heads.shape != (lists[0].shape[0], -(-query.shape[1] // 32)):
        raise ValueError(
            f"heads must be a bitmap of {query.shape[1]} heads for each of {lists[0].shape[0]} "
            f"entries, not of shape {[*heads.shape]}"
        )
    if block_table.dtype != torch.int32 or block_table.stride(1) != 1:
        raise ValueError("block_table must be int32 with contiguous lines")
    if sinks is not None and (sinks.shape != query.shape[1:2] or not sinks.is_contiguous()):
        raise ValueError("sinks must be one contiguous logit per head")


def kind(option: float | torch.Tensor | None) -> str:
    """How a scale, or the sinks, come to a kernel: "none", "value" or "tensor"."""
    if option is None:
        return "none"
    return "tensor" if isinstance(option, torch.Tensor) else "value"
