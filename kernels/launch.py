"""The public entry: checks, launch configuration, one or two kernel launches."""

import functools

import torch

from .config import RULES, LaunchConfig, choose, reduce_constants, steer_constants
from .reduce import reduce_kernel
from .steer import steer_kernel


def steered_attention(
    out: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    key_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
    value_cache: torch.Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
    block_table: torch.Tensor,  # [num_reqs, max_blocks] int32
    rows: torch.Tensor,  # [R] int32: token index of the steered row
    reqs: torch.Tensor,  # [R] int32: its line in block_table
    kv_lens: torch.Tensor,  # [R] int32: keys it sees; 0 leaves the row of `out` alone
    slots: torch.Tensor,  # [R] int32: its index in alpha
    alpha: torch.Tensor,  # [num_slots] float32
    span_words: torch.Tensor,  # [W] int32: bit p % 32 of word span_starts[r] + p // 32
    span_starts: torch.Tensor,  # [R] int32: first word of the row's bitmap
    span_lens: torch.Tensor,  # [R] int32: its words; later positions are no image positions
    *,
    scale: float,
    max_kv_len: int,  # upper bound of kv_lens, known to the host
    window: int = 0,  # > 0: a row at position n sees n - window < p <= n
    soft_cap: float = 0.0,  # > 0: cap * tanh(s / cap), after the rule
    sinks: torch.Tensor | None = None,  # [num_heads] extra logit per head, never steered
    k_scale: float | torch.Tensor | None = None,
    v_scale: float | torch.Tensor | None = None,
    rule: str = "multiply",
    config: LaunchConfig | None = None,  # for tests and tuning
) -> None:
    """Overwrite the steered rows of `out`; strides are free, no host synchronisation."""
    num_rows = rows.shape[0]
    if num_rows == 0:
        return
    _, num_heads, dim = query.shape
    _, block_size, num_kv_heads, _ = key_cache.shape
    lists = (rows, reqs, kv_lens, slots, span_starts, span_lens)
    _check(out, query, key_cache, value_cache, block_table, lists, alpha, span_words, sinks, rule)

    reach = min(max_kv_len, window) if window > 0 else max_kv_len
    if config is None:
        config = choose(
            rows=num_rows,
            num_kv_heads=num_kv_heads,
            head_dim=dim,
            kv_bytes=key_cache.element_size(),
            max_keys=reach,
            num_sms=_num_sms(query.device),
            is_hip=torch.version.hip is not None,
        )
    splits = config.splits
    part = None
    if splits > 1:
        part = torch.empty(
            num_rows * num_heads * splits * (dim + 1), dtype=torch.float32, device=out.device
        )
    e4m3_bits = key_cache.dtype is torch.float8_e4m3fn and not _converts_e4m3(query.device)
    if e4m3_bits:
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)

    steer_kernel[(num_kv_heads, splits, num_rows)](
        out,
        part,
        query,
        key_cache,
        value_cache,
        block_table,
        rows,
        reqs,
        kv_lens,
        slots,
        alpha,
        span_words,
        span_starts,
        span_lens,
        sinks,
        scale,
        k_scale,
        v_scale,
        window,
        soft_cap,
        out.stride(0),
        out.stride(1),
        query.stride(0),
        query.stride(1),
        *key_cache.stride(),
        *value_cache.stride(),
        block_table.stride(0),
        **steer_constants(
            config,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=dim,
            block_size=block_size,
            rule=rule,
            window=window,
            soft_cap=soft_cap,
            use_sinks=sinks is not None,
            k_scale=_scale_kind(k_scale),
            v_scale=_scale_kind(v_scale),
            e4m3_bits=e4m3_bits,
        ),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        reduce_kernel[(num_heads, num_rows)](
            out,
            part,
            rows,
            kv_lens,
            splits,
            window,
            out.stride(0),
            out.stride(1),
            **reduce_constants(config, head_dim=dim, window=window),
            num_warps=4,
        )


def _scale_kind(scale: float | torch.Tensor | None) -> str:
    if scale is None:
        return "none"
    return "tensor" if isinstance(scale, torch.Tensor) else "value"


def _check(
    out: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    lists: tuple[torch.Tensor, ...],
    alpha: torch.Tensor,
    span_words: torch.Tensor,
    sinks: torch.Tensor | None,
    rule: str,
) -> None:
    """What would otherwise read the wrong memory in silence."""
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
    for t in (*lists, span_words):
        if t.dtype != torch.int32 or not t.is_contiguous():
            raise ValueError("index tensors and span_words must be contiguous int32")
    if block_table.dtype != torch.int32 or block_table.stride(1) != 1:
        raise ValueError("block_table must be int32 with contiguous lines")
    if sinks is not None and (sinks.shape != query.shape[1:2] or not sinks.is_contiguous()):
        raise ValueError("sinks must be one contiguous logit per head")


@functools.cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # Triton's interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _converts_e4m3(device: torch.device) -> bool:
    """Compute capability 8.9 and later convert e4m3 in hardware; Triton refuses it before."""
    if device.type != "cuda" or torch.version.hip:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 9)
