"""Chosen heads of chosen layers: `heads` of `SteeringParams`, "17.3,17.5,20.0-7,25.*".

An item is LAYER.HEAD, each a number or a range, the head also `*` for all of that layer. Heads are
query heads, counted from 0 over the whole layer, whatever tensor-parallel rank holds them.
"""

from __future__ import annotations

from typing import Any

from adaptvis_vllm.steering.words import NUMBER_MAX, BadParameter, number_range, ranges, show

EVERY = -1  # a mask of all heads, however many there are


def parse_heads(text: str) -> dict[int, int]:
    """Layer -> mask of its chosen heads, bit h for head h; ValueError for anything else than items
    as above, separated by commas."""
    chosen: dict[int, int] = {}
    for item in text.split(","):
        layers, dot, heads = (part.strip() for part in item.partition("."))
        if not dot:
            raise ValueError(item)
        mask = EVERY if heads == "*" else sum(1 << head for head in number_range(heads))
        for layer in number_range(layers):
            chosen[layer] = chosen.get(layer, 0) | mask
    return chosen


def canonical_heads(value: Any, full: str) -> str | None:
    """Ordered and merged: "2.3,0.*,1.*,2.2" becomes "0-1.*,2.2-3"; "all" becomes None."""
    if isinstance(value, str) and value == "all":
        return None
    items = value if isinstance(value, list | tuple) else [value]
    try:
        if not all(isinstance(item, str) for item in items):
            raise ValueError
        return write_heads(parse_heads(",".join(items)))
    except ValueError:
        raise BadParameter(
            f"{full} must be layers and query heads such as '17.3,20.0-7,25.*' (numbers at most "
            f"{NUMBER_MAX}), or 'all', not {show(value)}",
            "heads",
        ) from None


def write_heads(chosen: dict[int, int]) -> str:
    """What `parse_heads` reads; neighbouring layers with the same heads are one item."""
    layers_of: dict[int, list[int]] = {}
    for layer in sorted(chosen):
        layers_of.setdefault(chosen[layer], []).append(layer)
    items = []
    for mask, found in layers_of.items():
        bits = range(mask.bit_length())
        heads = "*" if mask == EVERY else ranges([h for h in bits if mask >> h & 1])
        for layers in ranges(found).split(","):
            first = int(layers.partition("-")[0])
            items.append((first, ",".join(f"{layers}.{part}" for part in heads.split(","))))
    return ",".join(text for _, text in sorted(items))


def check_heads(chosen: dict[int, int], num_layers: int, num_heads: int, full: str) -> None:
    """BadParameter for a layer or a head that the model does not have."""
    layer = max(chosen)
    if layer >= num_layers:
        raise BadParameter(
            f"{full} names layer {layer}, but the model has layers 0-{num_layers - 1}", "heads"
        )
    for layer, mask in chosen.items():
        if mask != EVERY and mask >> num_heads:
            raise BadParameter(
                f"{full} names head {mask.bit_length() - 1} of layer {layer}, but the model has "
                f"query heads 0-{num_heads - 1}",
                "heads",
            )


def bitmap(mask: int, first: int, count: int) -> tuple[int, ...]:
    """Of a rank that holds `count` heads of a layer from `first` on: bit h % 32 of word h // 32 for
    its head h, as int32."""
    own = mask >> first & (1 << count) - 1
    words = [own >> 32 * i & 0xFFFFFFFF for i in range(-(-count // 32))]
    return tuple(word - (1 << 32) if word >> 31 else word for word in words)
