"""Steered rows over the paged KV cache of vLLM's CPU backend (`CPU_ATTN`).

A block of one kv head holds, by the layer's `isa`:
    vec, vec16, neon, ...  K as [head_dim, block], V as [block, head_dim]
    amx                    K as [block/16, head_dim/2, 16, 2], V as [head_dim/16, block/2, 16, 2]

`kernels/cpu/steer.cpp` reads it in place. Where that cannot be compiled, blocks are copied and
`kernels/reference.py` computes the same in torch, some 15 times slower.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from typing import Any

import torch

from adaptvis_vllm.engine.attention.layer import LayerRows
from adaptvis_vllm.engine.plan import StepRows, WeightRows
from adaptvis_vllm.kernels import attention_weights_reference, steered_attention_reference
from adaptvis_vllm.kernels.cpu import build as kernel
from adaptvis_vllm.kernels.cpu.weights import weigh_rows

CACHE_DTYPES = ("auto", "float16", "bfloat16")


@functools.cache
def compiled() -> bool:
    """Whether rows are computed by the compiled kernel. Compiles it, or warns, once."""
    reason = kernel.problem()
    if reason:
        text = f"adaptvis: steered rows are computed in torch, slowly: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return reason is None


class CpuLayer(LayerRows):
    """The steered rows of one vLLM `Attention` layer. index: its decoder layer index."""

    def __init__(self, layer: Any, index: int, steering: Any) -> None:
        super().__init__(layer, steering)
        self.packed = layer.isa == "amx"
        sinks = layer.impl.sinks
        self.options |= {
            "window": max(0, layer.impl.sliding_window),
            "sinks": None if sinks is None else sinks.float().contiguous(),
        }

    def recompute(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: Any,
        output: torch.Tensor,
        rows: StepRows,
    ) -> None:
        """Overwrite output[rows] with steered attention, and keep side rows' keys and values.

        query, output: [num_tokens, num_heads, head_dim]; key, value: [num_tokens, num_kv_heads,
        head_dim]. kv_cache: [blocks, kv_heads, block, 2 * head_dim]
        (`CPUAttentionBackendImpl.forward`). metadata: `CPUAttentionMetadata`.
        """
        output, query = output.view(self.queries), query.view(self.queries)
        table, options = metadata.block_table, self.options
        if rows.num_sides:
            # As the cache would hold them, and copies: what a layer computed is the next one's
            # memory.
            own = [
                t[rows.sides].reshape(self.keys).to(kv_cache.dtype, copy=True) for t in (key, value)
            ]
            options = options | {"key": own[0], "value": own[1], "first_side": rows.sides.start}
            plan = self.steering.plan
            choices = len(plan.choices)
            if choices:
                slots = metadata.slot_mapping[plan.base[:choices]]
                plan.commits.append(
                    functools.partial(self._commit, own, key.dtype, kv_cache, slots)
                )
        if compiled():
            tensors = (*rows.tensors(), rows.own)
            kernel.steer_rows(
                output, query, kv_cache, table, *tensors, packed=self.packed, **options
            )
        else:
            in_torch(output, query, kv_cache, table, rows, self.packed, options)

    def _commit(
        self,
        own: list[torch.Tensor],
        dtype: torch.dtype,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        chosen: torch.Tensor,
    ) -> None:
        """Write chosen side rows' keys and values. Nothing of a layer's own memory is held until
        then: the next layer could not use it, and every layer would fill new pages."""
        kept = (t.to(dtype).index_select(0, chosen) for t in own)
        self.layer.impl.do_kv_cache_update(self.layer, *kept, kv_cache, slots)

    def weigh(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: Any,
        rows: WeightRows,
    ) -> None:
        """Write the attention weights of rows; arguments as of `recompute`."""
        query, table = query.view(self.queries), metadata.block_table
        key = key.view(self.keys).to(kv_cache.dtype)
        if compiled():
            own = key.index_select(0, rows.rows)
            options = self.options | {"key": own, "packed": self.packed}
            weigh_rows(rows.out, query, kv_cache, table, *rows.tensors(), **options)
            return
        # The blocks of all requests, copied as the reference reads them.
        blocks, places = table.unique(return_inverse=True)
        key_cache, _ = _split(kv_cache[blocks.long()], self.packed)
        attention_weights_reference(
            *(rows.out, query, key_cache, places.int(), *rows.tensors()),
            key=key,
            dtype=torch.float32,
            **self.options,
        )


def in_torch(
    output: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    rows: StepRows,
    packed: bool,
    options: dict[str, Any],
) -> None:
    """What `kernel.steer_rows` does, one row at a time. options: of it."""
    options = dict(options)
    row_key, row_value = (options.pop(name, None) for name in ("key", "value"))
    first_side = options.pop("first_side", 0)
    for i, kv_len in enumerate(rows.kv_lens.tolist()):
        count = -(-kv_len // kv_cache.shape[2])
        key, value = _split(kv_cache[block_table[int(rows.reqs[i]), :count].long()], packed)
        entry = slice(i, i + 1)
        for j in range(max(1, int(rows.own[i]))):
            one = replace(
                rows,
                rows=rows.rows[entry] + j,
                reqs=torch.zeros_like(rows.reqs[entry]),
                kv_lens=rows.kv_lens[entry],
                slots=rows.slots[entry] + j,
                span_starts=rows.span_starts[entry],
                span_lens=rows.span_lens[entry],
                rules=rows.rules[entry],
                heads=rows.heads[entry],
            )
            if rows.own[i]:
                place, line = divmod(kv_len - 1, kv_cache.shape[2]), int(one.rows) - first_side
                key[place], value[place] = row_key[line], row_value[line]
            steered_attention_reference(
                output,
                query,
                key,
                value,
                torch.arange(count)[None],
                *one.tensors(),
                max_kv_len=kv_len,
                dtype=torch.float32,
                **options,
            )


def _split(blocks: torch.Tensor, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, kv_heads, block, 2 * dim] -> keys and values, each [n, block, kv_heads, dim]."""
    n, heads, block, twice = blocks.shape
    dim = twice // 2
    key, value = blocks.view(n, heads, 2, -1).unbind(2)
    if packed:
        key = key.view(n, heads, block // 16, dim // 2, 16, 2).transpose(3, 4)
        value = value.view(n, heads, dim // 16, block // 2, 16, 2).permute(0, 1, 3, 5, 2, 4)
    else:
        key = key.view(n, heads, dim, block).transpose(2, 3)
    shape = (n, heads, block, dim)
    return key.reshape(shape).transpose(1, 2), value.reshape(shape).transpose(1, 2)
