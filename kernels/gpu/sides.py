"""Side rows of a call, which bring key and value of their last position themselves."""

from dataclasses import dataclass
from typing import Any

import torch

# Float8 caches by the kernel's name for what is written into them.
FLOAT8 = {
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e4m3fnuz: "e4m3fnuz",
    torch.float8_e5m2: "e5m2",
    torch.float8_e5m2fnuz: "e5m2fnuz",
}


@dataclass
class Sides:
    """Side rows of a call, which bring key and value of their last position themselves.

    own: [E] int32, side rows of the entry, at most 2; 0 for a row in its place.
    first: token index of the first side row. key, value: [num_tokens, num_kv_heads, head_dim].
    kept: [K * 2 * num_kv_heads * head_dim], where those of the first K rows are kept in the cache's
    dtype, float8 as uint8. where: [K] int64, takes the cache slot of their last position.
    k_scale: the cache's scale of keys, for float8.
    """

    own: torch.Tensor
    first: int
    key: torch.Tensor
    value: torch.Tensor
    kept: torch.Tensor
    where: torch.Tensor
    k_scale: float | torch.Tensor | None = None

    def signature(self) -> tuple[Any, ...]:
        """What a launch depends on."""
        tensors = (self.own, self.key, self.value, self.kept, self.where)
        pointers = (self.key.data_ptr() % 16, self.value.data_ptr() % 16)
        return (*[(t.dtype, t.stride()) for t in tensors], pointers)


def check_sides(sides: Sides, key_cache: torch.Tensor) -> None:
    dim = key_cache.shape[3]
    if sides.key.stride()[1:] != (dim, 1) or sides.value.stride()[1:] != (dim, 1):
        raise ValueError("the heads of a side row's key and value must be contiguous")
    kept = torch.uint8 if key_cache.element_size() == 1 else key_cache.dtype
    if sides.kept.dtype != kept:
        raise ValueError(f"side rows are kept as {kept} for this cache, not {sides.kept.dtype}")
    if sides.own.dtype != torch.int32 or not sides.own.is_contiguous():
        raise ValueError("own must be contiguous int32")
    if sides.where.dtype != torch.int64 or not sides.where.is_contiguous():
        raise ValueError("where must be contiguous int64")
