"""What a launch is made of, on the host: tile, warps, stages, KV splits and constants.

The launcher and the ahead-of-time compiler both take it from here.
"""

from dataclasses import dataclass

RULES = ("multiply", "add_log", "pai")  # an entry holds the index of its own
PAIR = 2  # side rows of an entry at most
MAX_SPLITS = 128


@dataclass(frozen=True)
class Tile:
    block_n: int  # KV positions
    num_warps: int
    num_stages: int


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def choose_tile(*, head_dim: int, kv_bytes: int, is_hip: bool = False) -> Tile:
    """By the width of a cached position alone: a context length never compiles anew."""
    width = next_power_of_2(head_dim) * kv_bytes
    # 64 KiB of shared memory on a CDNA3 compute unit hold two stages, not three.
    num_stages = 2 if is_hip else 3
    if kv_bytes == 4:  # IEEE products run outside the tensor cores and want registers
        return Tile(32 if width <= 256 else 16, num_warps=8, num_stages=num_stages)
    return Tile(128 if width <= 128 else 32, num_warps=4, num_stages=num_stages)


def choose_splits(tile: Tile, *, rows: int, num_kv_heads: int, max_keys: int, num_sms: int) -> int:
    """How many programs share one row's keys.

    Two programs per SM, all resident at once, keep an H100's memory busy; more of them only
    add partial results. A grid well short of that is cut once more where the rows are long.
    """
    programs = rows * num_kv_heads
    splits = max(1, 2 * num_sms // programs)
    if 2 * splits * programs < 3 * num_sms and max_keys >= 1024 * (splits + 1):
        splits += 1
    return min(splits, -(-max_keys // tile.block_n), MAX_SPLITS)


def steer_constants(
    tile: Tile,
    *,
    is_split: bool,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    window: int,
    soft_cap: float,
    use_sinks: bool,
    k_scale: str,  # "none", "value" or "tensor"
    v_scale: str,
    e4m3_bits: bool,
    rows: int = 1,  # of an entry at most
    float8: str = "",
) -> dict[str, int | bool | str]:
    """In the order of the kernel's parameters."""
    group = num_heads // num_kv_heads
    return {
        "GROUP": group,
        "LANES": max(16, next_power_of_2(rows * group)),  # 16 is the least that tl.dot takes
        "DIM": head_dim,
        "DIM_PAD": next_power_of_2(head_dim),
        "BLOCK_SIZE": block_size,
        "BLOCK_N": tile.block_n,
        "USE_SPLITS": is_split,
        "USE_WINDOW": window > 0,
        "USE_SOFT_CAP": soft_cap > 0,
        "USE_SINKS": use_sinks,
        "K_SCALE": k_scale,
        "V_SCALE": v_scale,
        "E4M3_BITS": e4m3_bits,
        "ROWS": rows,
        "FLOAT8": float8,
    }


def reduce_constants(
    tile: Tile, *, head_dim: int, window: int, rows: int = 1
) -> dict[str, int | bool]:
    return {
        "DIM": head_dim,
        "DIM_PAD": next_power_of_2(head_dim),
        "BLOCK_N": tile.block_n,
        "CHUNK": 32,
        "USE_WINDOW": window > 0,
        "ROWS": rows,
    }
