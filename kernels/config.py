"""What a launch is made of, on the host: tile, warps, stages, KV splits and constants.

The launcher and the ahead-of-time compiler both take it from here.
"""

from dataclasses import dataclass

RULES = ("multiply", "add_log", "pai")
MAX_SPLITS = 128


@dataclass(frozen=True)
class LaunchConfig:
    block_n: int  # KV positions per tile
    num_warps: int
    num_stages: int
    splits: int  # programs that share one row's KV range


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def choose(
    *,
    rows: int,
    num_kv_heads: int,
    head_dim: int,
    kv_bytes: int,  # size of one cache element
    max_keys: int,  # keys that the longest row may read, window applied
    num_sms: int,
    is_hip: bool = False,
) -> LaunchConfig:
    """Tile by the width of a cached position alone: a context length never compiles anew.

    Two programs per SM, all resident at once, keep an H100's memory busy; more of them only
    add partial results, fewer leave it idle.
    """
    width = next_power_of_2(head_dim) * kv_bytes
    block_n = 64 if width <= 128 else 32 if width <= 512 else 16
    wanted = 2 * num_sms // (rows * num_kv_heads)
    tiles = -(-max_keys // block_n)
    splits = max(1, min(wanted, tiles, MAX_SPLITS))
    # 64 KiB of shared memory on a CDNA3 compute unit hold two stages, not three.
    return LaunchConfig(block_n, num_warps=4, num_stages=2 if is_hip else 3, splits=splits)


def steer_constants(
    config: LaunchConfig,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    rule: str,
    window: int,
    soft_cap: float,
    use_sinks: bool,
    k_scale: str,  # "none", "value" or "tensor"
    v_scale: str,
    e4m3_bits: bool,
) -> dict[str, int | bool | str]:
    group = num_heads // num_kv_heads
    return {
        "GROUP": group,
        "GROUP_PAD": max(16, next_power_of_2(group)),  # the least that tl.dot takes
        "DIM": head_dim,
        "DIM_PAD": next_power_of_2(head_dim),
        "BLOCK_SIZE": block_size,
        "BLOCK_N": config.block_n,
        "USE_SPLITS": config.splits > 1,
        "RULE": rule,
        "USE_WINDOW": window > 0,
        "USE_SOFT_CAP": soft_cap > 0,
        "USE_SINKS": use_sinks,
        "K_SCALE": k_scale,
        "V_SCALE": v_scale,
        "E4M3_BITS": e4m3_bits,
    }


def reduce_constants(config: LaunchConfig, *, head_dim: int, window: int) -> dict[str, int | bool]:
    return {
        "DIM": head_dim,
        "DIM_PAD": next_power_of_2(head_dim),
        "BLOCK_N": config.block_n,
        "CHUNK": 8,
        "USE_WINDOW": window > 0,
    }
