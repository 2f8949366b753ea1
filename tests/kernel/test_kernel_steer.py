"""The Triton kernel against the float64 reference."""

import pytest
import torch
from adaptvis_vllm.kernels import steered_attention_reference
from adaptvis_vllm.kernels.testing import Case, make_case
from support.kernel_checks import NAMES, OPTIONS, TILE, TOLERANCE, assert_close


def check(case: Case, steered_attention, **changes) -> None:
    """Steered rows equal the reference, every other row keeps its bits."""
    launch = {k: changes.pop(k) for k in ("tile", "splits") if k in changes}
    ref = case.run(steered_attention_reference, case.empty_out(torch.float64), **changes)
    out = case.run(steered_attention, **launch, **changes)
    steered = torch.tensor([r for r, n in zip(case.rows, case.kv_lens, strict=True) if n > 0])
    others = torch.ones(case.num_tokens, dtype=torch.bool)
    others[steered] = False
    assert not out[steered].isnan().any(), "a steered element was not written"
    assert out[others].isnan().all(), "a row that is not steered was written"
    assert_close("out", ref[steered], out[steered], TOLERANCE[case.args["query"].dtype])


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("n", [1, 5, 16, 17, 32, 33, 123], ids=lambda n: f"N{n}")
def test_context_length(steered_attention, device, n, dtype):
    check(make_case(kv_lens=[n], dtype=dtype, device=device), steered_attention)


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128, 256], ids=lambda d: f"D{d}")
def test_head_dim(steered_attention, device, dim, dtype):
    case = make_case(kv_lens=[5, 123], dim=dim, dtype=dtype, device=device)
    check(case, steered_attention)


@pytest.mark.parametrize(
    "heads", [(2, 2), (4, 1), (7, 1), (14, 2), (16, 2), (20, 1)], ids=lambda h: f"H{h[0]}-KV{h[1]}"
)
def test_head_groups(steered_attention, device, heads):
    check(make_case(kv_lens=[70, 33], heads=heads, device=device), steered_attention)


@pytest.mark.parametrize("layout", ["nhd", "hnd", "fused", "k_transposed"])
@pytest.mark.parametrize("block_size", [16, 32, 48, 80, 128], ids=lambda b: f"B{b}")
def test_cache_layout(steered_attention, device, layout, block_size):
    case = make_case(kv_lens=[1, 129, 300], layout=layout, block_size=block_size, device=device)
    check(case, steered_attention, splits=2)


@pytest.mark.parametrize("spans", ["none", "all", "middle", "pairs", "hundreds", "random"])
def test_spans(steered_attention, device, spans):
    check(make_case(kv_lens=[640, 77], spans=spans, device=device), steered_attention)


def test_a_batch_without_any_image_needs_no_words(steered_attention, device):
    case = make_case(kv_lens=[40], spans="none", device=device)
    assert case.args["span_words"].numel() == 0
    check(case, steered_attention)


@pytest.mark.parametrize("rows", [1, 2, 7, 64], ids=lambda r: f"R{r}")
def test_rows(steered_attention, device, rows):
    kv_lens = [1 + (37 * i) % 61 for i in range(rows)]
    check(make_case(kv_lens=kv_lens, heads=(2, 1), dim=32, device=device), steered_attention)


def test_a_padding_row_is_left_alone(steered_attention, device):
    case = make_case(kv_lens=[0, 90, 0], device=device)
    for splits in (1, 3):
        check(case, steered_attention, **TILE, splits=splits)


@pytest.mark.parametrize("splits", [2, 3, 8, 40], ids=lambda s: f"S{s}")
def test_splits_equal_one_program(steered_attention, device, splits):
    case = make_case(kv_lens=[1, 32, 33, 500], heads=(4, 1), device=device)
    check(case, steered_attention, **TILE, splits=splits)
    rows = case.args["rows"]
    one = case.run(steered_attention, **TILE, splits=1)[rows]
    many = case.run(steered_attention, **TILE, splits=splits)[rows]
    assert_close("splits", one, many, 1e-6)


def test_the_bound_on_the_context_may_be_loose(steered_attention, device):
    case = make_case(kv_lens=[45, 160], device=device)
    check(case, steered_attention, max_kv_len=32768)


@pytest.mark.parametrize("splits", [1, 4], ids=lambda s: f"S{s}")
@pytest.mark.parametrize(
    ("rule", "option"),
    [("multiply", option) for option in OPTIONS]
    + [(rule, option) for rule in ("add_log", "pai") for option in ("window", "together")],
)
def test_options_and_rules(steered_attention, device, option, rule, splits):
    options = {k: v.to(device) if k == "sinks" else v for k, v in OPTIONS[option].items()}
    case = make_case(kv_lens=[3, 51, 200], spans="pairs", rule=rule, device=device)
    check(case, steered_attention, **TILE, splits=splits, **options)


def test_add_log_with_alpha_zero_hides_the_image(steered_attention, device):
    case = make_case(kv_lens=[200], spans="pairs", alpha=0.0, rule="add_log", device=device)
    for splits in (1, 5):
        check(case, steered_attention, **TILE, splits=splits)


def test_pai_takes_a_negative_alpha(steered_attention, device):
    case = make_case(kv_lens=[200], spans="pairs", alpha=-0.7, rule="pai", device=device)
    check(case, steered_attention)


@pytest.mark.parametrize("splits", [1, 4], ids=lambda s: f"S{s}")
@pytest.mark.parametrize("option", OPTIONS)
def test_each_row_has_a_rule_and_heads_of_its_own(steered_attention, device, option, splits):
    options = {k: v.to(device) if k == "sinks" else v for k, v in OPTIONS[option].items()}
    lens = [3, 51, 200, 77, 64]
    case = make_case(kv_lens=lens, spans="pairs", rule=None, steered="some", device=device)
    check(case, steered_attention, **TILE, splits=splits, **options)


@pytest.mark.parametrize(
    "heads",
    [(2, 2), (7, 1), (32, 32), (33, 3), (40, 2), (64, 8)],
    ids=lambda h: f"H{h[0]}-KV{h[1]}",
)
def test_heads_of_one_word_and_of_two(steered_attention, device, heads):
    options = {"rule": None, "steered": "some", "dim": 32, "device": device}
    check(make_case(kv_lens=[70, 33, 90], heads=heads, **options), steered_attention)


def test_no_head_is_alpha_one(steered_attention, device):
    options = {"kv_lens": [70, 33, 200], "device": device}
    case = make_case(**options, rule=None, steered="none")
    check(case, steered_attention)
    rows = case.args["rows"].long()
    neutral = make_case(**options, alpha=1.0).run(steered_attention)
    assert torch.equal(case.run(steered_attention)[rows], neutral[rows])


def test_the_other_heads_keep_their_bits(steered_attention, device):
    """A head that is not steered is what it is where none is; one that is, where all are."""
    options = {"kv_lens": [70, 33, 200], "heads": (14, 2), "rule": None, "device": device}
    outs = {
        s: make_case(**options, steered=s).run(steered_attention) for s in ("all", "some", "none")
    }
    case = make_case(**options, steered="some")
    for i, row in enumerate(case.rows):
        for head in range(14):
            is_on = int(case.args["heads"][i, 0]) >> head & 1
            want = outs["all" if is_on else "none"][row, head]
            assert torch.equal(outs["some"][row, head], want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=NAMES.get)
@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("scales", ["floats", "tensors"])
def test_float8_cache(steered_attention, device, dtype, kv_dtype, scales):
    choice = {"rule": None, "steered": "some"}
    case = make_case(kv_lens=[9, 100], dtype=dtype, kv_dtype=kv_dtype, device=device, **choice)
    k_scale, v_scale = 0.37, 2.5
    if scales == "tensors":
        k_scale, v_scale = (torch.tensor([x], device=device) for x in (k_scale, v_scale))
    check(case, steered_attention, k_scale=k_scale, v_scale=v_scale)


def test_e4m3_without_hardware_conversion_is_exact(launch, device, monkeypatch):
    case = make_case(
        kv_lens=[100], dtype=torch.bfloat16, kv_dtype=torch.float8_e4m3fn, device=device
    )
    plain = case.run(launch.steered_attention)
    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(launch, "converts_e4m3", lambda device: False)
    shifted = case.run(launch.steered_attention)
    assert torch.equal(plain.nan_to_num(), shifted.nan_to_num())


def test_unaligned_rows_of_wider_buffers(steered_attention, device):
    """Query and output as vLLM slices them out of one fused projection."""
    case = make_case(kv_lens=[70, 20], device=device)
    q = case.args["query"]
    wide = torch.zeros(q.shape[0], 3 * q.shape[1], q.shape[2], device=device)
    wide[:, q.shape[1] : 2 * q.shape[1]] = q
    check(case, steered_attention, query=wide[:, q.shape[1] : 2 * q.shape[1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": torch.zeros(1)}, "contiguous int32"),
        ({"heads": torch.zeros(1, 2, dtype=torch.int32)}, "a bitmap of 4 heads for each of 1"),
        ({"alpha": torch.ones(4, dtype=torch.float64)}, "alpha must be float32"),
        ({"rows": torch.tensor([0])}, "contiguous int32"),
        ({"sinks": torch.zeros(3)}, "one contiguous logit per head"),
        ({"query": torch.zeros(3, 3, 64)}, "do not divide"),
    ],
    ids=["rules", "bitmap", "alpha", "rows", "sinks", "heads"],
)
def test_what_it_cannot_serve_is_refused(steered_attention, change, message):
    case = make_case(kv_lens=[4])
    with pytest.raises(ValueError, match=message):
        case.run(steered_attention, torch.zeros(3, 4, 64), **change)


def test_a_first_call_compiles_for_few_rows_and_for_many(launch, monkeypatch):
    """No later call of its kind waits for a compiler, however many rows it has."""
    names = []
    run = launch.Plan.launch

    def noted(plan, name, *args, **const):
        names.append(name)
        run(plan, name, *args, **const)

    monkeypatch.setattr(launch.Plan, "launch", noted)
    monkeypatch.setattr(launch, "_compiles", lambda device: True)
    monkeypatch.setattr(launch, "_plans", {})
    few, many = (make_case(kv_lens=[40] * rows, seed=rows) for rows in (1, 20))
    check(few, launch.steered_attention)
    assert names == ["whole", "split", "reduce"]
    names.clear()
    check(few, launch.steered_attention)
    assert names == ["split", "reduce"]
    names.clear()
    check(many, launch.steered_attention)
    assert names == ["whole"]
