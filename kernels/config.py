"""Launch configuration: tile, warps, stages and KV splits, chosen on the host."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchConfig:
    block_n: int  # KV positions per tile
    num_warps: int
    num_stages: int
    splits: int  # programs that share one row's KV range


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
    max_kv_len: int,  # keys that the longest row may read, window applied
    num_sms: int,
) -> LaunchConfig:
    tile_bytes = next_power_of_2(head_dim) * kv_bytes
    block_n = 64 if tile_bytes <= 256 else 32
    programs = rows * num_kv_heads
    tiles = -(-max_kv_len // block_n)
    # Enough programs for two rounds of two resident blocks on every SM; a split of one
    # tile is not worth its partial result.
    wanted = -(-4 * num_sms // programs)
    splits = max(1, min(wanted, tiles // 2, 64))
    return LaunchConfig(block_n, num_warps=4, num_stages=3, splits=splits)
