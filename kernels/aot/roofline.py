"""Bytes that the kernel must move, and the time floor that follows from a bandwidth."""

from dataclasses import dataclass

# Device memory bandwidth by datasheet, bytes per second.
BANDWIDTH = {"A100": 2.0e12, "H100": 3.35e12}


@dataclass(frozen=True)
class Model:
    """Attention of one layer."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int  # a typical prompt with one image
    window: int = 0

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads


MODELS = (
    Model("LLaVA-1.5-7B", 32, 32, 128, context=640),
    Model("LLaVA-NeXT-vicuna-7B", 32, 32, 128, context=2944),
    Model("LLaVA-NeXT-mistral-7B", 32, 8, 128, context=2944),
    Model("Qwen2.5-VL-7B", 28, 4, 128, context=1536),
    Model("Gemma-3-12B", 16, 8, 256, context=2048),
    Model("Gemma-3-12B-local", 16, 8, 256, context=2048, window=1024),
)


def keys_read(model: Model, kv_len: int) -> int:
    return min(kv_len, model.window) if model.window else kv_len


def bytes_moved(
    model: Model,
    kv_len: int,
    *,
    rows: int = 1,
    element: int = 2,
    kv_element: int = 2,
    block_size: int = 16,
) -> int:
    """K and V once, the block table, the bitmap, the query rows in and the output rows out.

    Partial results of a split stay in the cache and are not counted.
    """
    keys = keys_read(model, kv_len)
    kv = 2 * keys * model.num_kv_heads * model.head_dim * kv_element
    index = 4 * -(-keys // block_size) + 4 * -(-keys // 32)
    q_out = 2 * model.num_heads * model.head_dim * element
    return rows * (kv + index + q_out)


def floor_us(num_bytes: int, bandwidth: float) -> float:
    return num_bytes / bandwidth * 1e6
