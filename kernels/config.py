"""Launch configuration: tile, warps, stages and KV splits, chosen on the host."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchConfig:
    block_n: int  # KV positions per tile
    num_warps: int
    num_stages: int
    splits: int  # programs that share one row's KV range


MAX_SPLITS = 128


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def group_pad(group: int) -> int:
    """Query heads of one KV head, padded to what tl.dot takes."""
    return max(16, next_power_of_2(group))


def choose(
    *,
    rows: int,
    num_kv_heads: int,
    head_dim: int,
    kv_bytes: int,  # size of one cache element
    max_keys: int,  # keys that the longest row may read, window applied
    num_sms: int,
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
    return LaunchConfig(block_n, num_warps=4, num_stages=3, splits=splits)
