"""Ahead-of-time compilation, without a GPU: nothing of the named models spills."""

import os

import pytest
from adaptvis_vllm.kernels.aot.arch import ARCHES, Resources, resident_blocks
from adaptvis_vllm.kernels.aot.compile import HEADER, Row, Variant, compile_row
from adaptvis_vllm.kernels.aot.roofline import MODELS, bytes_moved, floor_us
from adaptvis_vllm.kernels.gpu.config import Tile, choose_splits, choose_tile

interpreted = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(interpreted, reason="Triton was told to interpret: nothing is compiled")
@pytest.mark.parametrize(
    ("name", "kv_dtype", "kernel", "sides", "arch"),
    [
        ("LLaVA-1.5-7B", "", "steer", False, "sm_80"),
        ("Qwen2.5-VL-7B", "e4m3", "steer", False, "sm_90"),
        ("Gemma-3-12B-local", "", "steer", False, "sm_100"),
        ("LLaVA-1.5-7B", "", "reduce", False, "sm_90"),
        ("LLaVA-1.5-7B", "", "steer", True, "sm_90"),
        ("Qwen2.5-VL-7B", "e4m3", "steer", True, "sm_80"),
        ("Gemma-3-12B-local", "", "steer", True, "sm_100"),
        ("LLaVA-1.5-7B", "", "reduce", True, "sm_90"),
        ("LLaVA-1.5-7B", "e4m3", "commit", False, "sm_90"),
        ("Qwen2.5-VL-7B", "", "weights", False, "sm_90"),
        ("Gemma-3-12B-local", "e4m3", "weights", False, "sm_80"),
    ],
)
def test_a_named_model_compiles_without_spills(name, kv_dtype, kernel, sides, arch):
    model = next(m for m in MODELS if m.name == name)
    variant = Variant(model, kv_dtype=kv_dtype, kernel=kernel, sides=sides, named=True)
    row = compile_row(variant, ARCHES[arch])
    # Side rows over a float8 cache hold more than a thread has registers for.
    assert row.resources.spill_bytes <= (96 if kv_dtype and sides else 0)
    assert 0 < row.resources.registers <= 255
    assert row.blocks_per_sm >= 2
    assert arch in str(row)


def test_the_table_lines_up():
    model = MODELS[0]
    arch = ARCHES["sm_90"]
    variant = Variant(model, named=True)
    row = Row(variant, arch, variant.tile(arch), Resources(128, 0, 38144), 4)
    assert len(str(row)) == len(HEADER)


@pytest.mark.parametrize(
    ("used", "blocks"),
    [((128, 0, 1024), 4), ((32, 0, 65536), 3), ((16, 0, 0), 16), ((255, 0, 200 << 10), 1)],
    ids=["registers", "shared", "threads", "one"],
)
def test_resident_blocks(used, blocks):
    assert resident_blocks(Resources(*used), 4, ARCHES["sm_90"]) == blocks


def test_bytes_of_llava_by_hand():
    llava = MODELS[0]
    kv = 2 * 640 * 32 * 128 * 2
    assert bytes_moved(llava, 640) == kv + 4 * 40 + 4 * 20 + 2 * 32 * 128 * 2
    local = next(m for m in MODELS if m.window)
    assert bytes_moved(local, 32768) == bytes_moved(local, local.window)
    assert floor_us(2_000_000, 2.0e12) == pytest.approx(1.0)


def test_splits_follow_the_grid_and_the_context():
    def splits(rows, keys, num_kv_heads=8):
        tile = Tile(32, num_warps=4, num_stages=3)
        return choose_splits(tile, rows=rows, num_kv_heads=num_kv_heads, max_keys=keys, num_sms=132)

    assert splits(1, 32768) == 33
    assert splits(1, 64) == 2  # no more than tiles
    assert splits(64, 32768) == 1  # the grid is full already
    assert splits(20, 32768) == 2  # 160 programs would leave SMs with one
    assert splits(20, 640) == 1  # but short rows are not worth a second launch
    assert splits(1, 1 << 20, num_kv_heads=1) == 128


@pytest.mark.parametrize(
    ("dim", "kv_bytes"), [(32, 2), (128, 1), (128, 2), (96, 2), (256, 2), (256, 4)]
)
def test_tiles_fit_in_shared_memory(dim, kv_bytes):
    """A block of every GPU from sm_80 to sm_120 may take 99 KiB."""
    tile = choose_tile(head_dim=dim, kv_bytes=kv_bytes)
    padded = 1 << (dim - 1).bit_length()
    assert 2 * (tile.num_stages - 1) * tile.block_n * padded * kv_bytes <= 90 << 10
