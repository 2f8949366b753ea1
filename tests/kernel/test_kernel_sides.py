"""Side rows: they bring key and value of their last position, and leave the chosen one's behind."""

import pytest
import torch
from adaptvis_vllm.kernels import steered_attention_reference
from adaptvis_vllm.kernels.testing import add_sides, as_cached, expected_sides, make_case
from support.kernel_checks import NAMES, OPTIONS, TILE, TOLERANCE, assert_close


def check(case, steered_attention, **launch) -> None:
    """Every row, what is kept of side rows, and where."""
    sides = case.args["sides"]
    sides.kept.view(torch.uint8).fill_(123)
    want, places = expected_sides(case, steered_attention_reference)
    out = case.run(steered_attention, **launch)
    written = ~want.isnan().any(2).any(1)
    assert torch.equal(~out.isnan().any(2).any(1), written)
    assert_close("out", want[written], out[written], TOLERANCE[case.args["query"].dtype])
    block_size, heads, dim = case.args["key_cache"].shape[1:]
    kept = sides.kept.view(-1, 2, heads, dim)
    for row, block, place in places[: len(kept)]:
        assert sides.where[row] == block * block_size + place
        for i, (name, rows, scale) in enumerate(
            (
                ("key_cache", sides.key, sides.k_scale),
                ("value_cache", sides.value, case.args.get("v_scale")),
            )
        ):
            wanted = as_cached(rows[sides.first + row], case.args[name].dtype, scale)
            assert torch.equal(kept[row, i].view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("splits", [1, 3], ids=lambda s: f"S{s}")
def test_pairs_single_rows_and_rows_in_place(steered_attention, device, dtype, splits):
    case = make_case(kv_lens=[1, 33, 64, 65, 0, 7], heads=(2, 1), dtype=dtype, device=device)
    case = add_sides(case, [2, 0, 1, 2, 2, 0])
    check(case, steered_attention, **TILE, splits=splits)


@pytest.mark.parametrize("kept", [0, 2, 4])
@pytest.mark.parametrize("kv_dtype", [None, torch.float8_e4m3fn], ids=str)
def test_only_the_first_are_kept(steered_attention, device, kept, kv_dtype):
    """Rows of which none will be chosen leave nothing behind; five are three pairs."""
    dtype = torch.bfloat16 if kv_dtype else torch.float32
    case = make_case(kv_lens=[40, 33, 70, 70, 70], dtype=dtype, kv_dtype=kv_dtype, device=device)
    case = add_sides(case, [2, 2, 2, 2, 1], kept=kept)
    sides = case.args["sides"]
    behind = [torch.full_like(t[:0].new_empty(64), 99) for t in (sides.kept, sides.where)]
    for name, old in zip(("kept", "where"), behind, strict=True):
        whole = torch.cat([getattr(sides, name), old])
        setattr(sides, name, whole[: len(whole) - len(old)])
    check(case, steered_attention)
    for name in ("kept", "where"):
        t = getattr(sides, name)
        guard = t.as_strided((64,), (1,), t.storage_offset() + len(t))
        assert (guard.float() == 99).all()


@pytest.mark.parametrize(
    "heads", [(2, 2), (7, 1), (8, 1), (14, 2), (20, 1)], ids=lambda h: f"H{h[0]}-KV{h[1]}"
)
@pytest.mark.parametrize("steered", ["all", "some"])
def test_head_groups(steered_attention, device, heads, steered):
    case = make_case(kv_lens=[70, 33], heads=heads, rule=None, steered=steered, device=device)
    check(add_sides(case, [2, 2]), steered_attention)


@pytest.mark.parametrize("layout", ["nhd", "hnd", "fused"])
@pytest.mark.parametrize("block_size", [16, 48], ids=lambda b: f"B{b}")
def test_cache_layout(steered_attention, device, layout, block_size):
    case = make_case(kv_lens=[1, 96, 97], layout=layout, block_size=block_size, device=device)
    check(add_sides(case, [2, 2, 2]), steered_attention, splits=2)


@pytest.mark.parametrize("dim", [32, 80, 256], ids=lambda d: f"D{d}")
def test_head_dim(steered_attention, device, dim):
    check(add_sides(make_case(kv_lens=[5, 123], dim=dim, device=device), [2, 2]), steered_attention)


@pytest.mark.parametrize("spans", ["none", "all", "hundreds"])
def test_the_last_position_may_be_an_image(steered_attention, device, spans):
    choice = {"rule": None, "steered": "some", "heads": (40, 4), "dim": 32}
    case = make_case(kv_lens=[96, 77], spans=spans, device=device, **choice)
    check(add_sides(case, [2, 2]), steered_attention, **TILE, splits=2)


@pytest.mark.parametrize("splits", [1, 4], ids=lambda s: f"S{s}")
@pytest.mark.parametrize("option", [name for name in OPTIONS if "scales" not in name])
@pytest.mark.parametrize("choice", [{}, {"rule": None, "steered": "some"}], ids=["", "chosen"])
def test_options(steered_attention, device, option, splits, choice):
    options = {k: v.to(device) if k == "sinks" else v for k, v in OPTIONS[option].items()}
    options = {k: v for k, v in options.items() if not k.endswith("_scale")}
    case = make_case(kv_lens=[3, 51, 200], spans="pairs", device=device, **options, **choice)
    check(add_sides(case, [2, 2, 2]), steered_attention, **TILE, splits=splits)


def test_a_cache_of_16_bits_under_float32(steered_attention, device):
    case = make_case(kv_lens=[9, 100], kv_dtype=torch.float16, device=device)
    check(add_sides(case, [2, 2]), steered_attention)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=NAMES.get)
@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("scales", ["none", "floats", "tensors"])
def test_float8_makes_the_round_trip(steered_attention, device, dtype, kv_dtype, scales):
    """Small scales saturate, large ones reach the numbers below the least normal one."""
    for k, v in ((0.0037, 2.5), (60.0, 0.001)):
        options = {} if scales == "none" else {"k_scale": k, "v_scale": v}
        if scales == "tensors":
            options = {name: torch.tensor([x], device=device) for name, x in options.items()}
        case = make_case(
            kv_lens=[9, 40],
            heads=(2, 1),
            dtype=dtype,
            kv_dtype=kv_dtype,
            device=device,
            scale=1e-3,
        )
        case.args |= options
        check(add_sides(case, [2, 1]), steered_attention)


def test_a_quantised_query_has_a_scale_of_its_own(steered_attention, device):
    """Which multiplies the logits, and not what is kept."""
    case = make_case(
        kv_lens=[40], dtype=torch.bfloat16, kv_dtype=torch.float8_e4m3fn, device=device
    )
    case = add_sides(case, [2])
    sides = case.args["sides"]
    case.args["k_scale"] = torch.tensor(0.3 * 0.7, device=device)
    sides.k_scale = torch.tensor(0.3, device=device)
    check(case, steered_attention)


def test_low_and_high_are_one_program(launch, monkeypatch):
    """K and V are read once for both."""
    grids = []

    class NoKernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    case = add_sides(make_case(kv_lens=[50, 60, 70], heads=(4, 2)), [2, 0, 2])
    monkeypatch.setattr(launch, "steer_kernel", NoKernel())
    case.run(launch.steered_attention, splits=1)
    assert grids == [(2, 1, 3)]


@pytest.mark.parametrize("kv_dtype", [None, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_one_launch_writes_all_layers(launch, commit, device, kv_dtype, monkeypatch):
    """The chosen rows' keys and values lie where attention looks for them, and nothing else
    changed."""
    dtype = torch.float32 if kv_dtype is None else torch.bfloat16
    shapes = [{"heads": (4, 2), "dim": 64}, {"heads": (4, 4), "dim": 80, "layout": "hnd"}]
    shapes += [{"heads": (4, 1), "dim": 128, "layout": "fused"}]
    own = [2, 0, 1, 2]
    cases = [
        add_sides(
            make_case(kv_lens=[33, 5, 16, 50], dtype=dtype, kv_dtype=kv_dtype, device=device, **s),
            own,
        )
        for s in shapes
    ]
    layers = [(c.args["key_cache"], c.args["value_cache"]) for c in cases]
    kept = commit.Caches(layers).keep(sum(own))
    before = [[bits(cache).clone() for cache in layer] for layer in layers]
    for i, case in enumerate(cases):
        case.args["sides"].kept, case.args["sides"].where = kept.layer(i)
        case.run(launch.steered_attention)
    chosen = torch.tensor([1, 2, 3], device=device)  # high, the only one, low
    grids, kernel = [], commit.commit_kernel

    class Counted:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(commit, "commit_kernel", Counted())
    kept.commit(chosen)
    assert grids == [(3, 3, 2)]
    for case, layer, old in zip(cases, layers, before, strict=True):
        sides = case.args["sides"]
        for cache, rows, was in zip(layer, (sides.key, sides.value), old, strict=True):
            for row in chosen.tolist():
                block, place = divmod(int(sides.where[row]), cache.shape[1])
                wanted = as_cached(rows[sides.first + row], cache.dtype, None)
                assert torch.equal(bits(cache)[block, place], bits(wanted))
                was[block, place] = bits(wanted)
            assert torch.equal(bits(cache), was)


def bits(x: torch.Tensor) -> torch.Tensor:
    """Of which NaN equals itself."""
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def test_caches_of_two_widths_are_two_launches(commit, device):
    wide = torch.zeros(4, 16, 2, 64, device=device)
    narrow = torch.zeros(4, 16, 2, 64, device=device, dtype=torch.bfloat16)
    kept = commit.Caches([(wide, wide.clone()), (narrow, narrow.clone())] * 2).keep(3)
    assert [kept.layer(i)[0].dtype for i in range(4)] == [torch.float32, torch.bfloat16] * 2
    assert len({kept.layer(i)[0].data_ptr() for i in range(4)}) == 4
    assert len(kept.parts) == 2


def test_what_cannot_be_served_is_refused(steered_attention, commit):
    case = add_sides(make_case(kv_lens=[4]), [2])
    case.args["sides"].kept = case.args["sides"].kept.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"kept as torch\.float32"):
        case.run(steered_attention)
    key = torch.zeros(4, 2, 64, 16).transpose(2, 3)
    with pytest.raises(ValueError, match="contiguous heads"):
        commit.Caches([(key, key)])
