"""What the steered rows of a layer need of it, whatever its backend."""

from __future__ import annotations

from typing import Any


class LayerRows:
    """layer: vLLM `Attention`. steering: the worker's; None for rows in their place alone.

    queries, keys: shapes with heads apart, [-1, heads, head_dim]. options: of a kernel.
    """

    def __init__(self, layer: Any, steering: Any) -> None:
        self.layer, self.steering = layer, steering
        impl = layer.impl
        self.queries = (-1, impl.num_heads, impl.head_size)
        self.keys = (-1, impl.num_kv_heads, impl.head_size)
        self.options: dict[str, Any] = {
            "scale": impl.scale,
            "soft_cap": impl.logits_soft_cap or 0.0,
        }
