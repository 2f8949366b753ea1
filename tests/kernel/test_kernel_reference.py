"""The torch reference against a formula written out by hand, and the import rules."""

import math
import subprocess
import sys

import pytest
import torch
from adaptvis_vllm.kernels import steered_attention_reference
from adaptvis_vllm.kernels.gpu.config import RULES
from adaptvis_vllm.kernels.testing import make_case


def by_hand(case, row, head):
    """One head of one row with Python floats, one position at a time."""
    a = case.args
    i = case.rows.index(row)
    n, bs = case.kv_lens[i], a["key_cache"].shape[1]
    kv_head = head // (a["query"].shape[1] // a["key_cache"].shape[2])
    alpha = a["alpha"][a["slots"][i]].item()
    is_on = (a["heads"][i, head // 32].item() & 0xFFFFFFFF) >> (head % 32) & 1
    logits, values = [], []
    for p in range(n):
        block = a["block_table"][a["reqs"][i], p // bs]
        k = a["key_cache"][block, p % bs, kv_head].tolist()
        values.append(a["value_cache"][block, p % bs, kv_head].tolist())
        q = a["query"][row, head].tolist()
        s = a["scale"] * sum(x * y for x, y in zip(q, k, strict=True))
        word = p // 32
        if word < a["span_lens"][i]:
            bits = a["span_words"][a["span_starts"][i] + word].item() & 0xFFFFFFFF
            if bits >> (p % 32) & 1 and is_on:
                rule = RULES[a["rules"][i]]
                if rule == "multiply":
                    s = s * alpha
                elif rule == "add_log":
                    s = s + math.log(alpha)
                else:
                    s = s + alpha * abs(s)
        logits.append(s)
    weights = [math.exp(s) for s in logits]
    return [
        sum(w * v[d] for w, v in zip(weights, values, strict=True)) / sum(weights)
        for d in range(len(values[0]))
    ]


@pytest.mark.parametrize(
    ("rule", "alpha"), [("multiply", None), ("add_log", None), ("pai", None), ("pai", -0.5)]
)
@pytest.mark.parametrize("steered", ["all", "some"])
def test_reference_equals_the_formula(rule, alpha, steered):
    options = {"rule": rule, "alpha": alpha, "steered": steered}
    case = make_case(kv_lens=[37, 70], heads=(4, 2), dim=8, spans="pairs", **options)
    out = case.run(steered_attention_reference, case.empty_out(torch.float64))
    for row in case.rows:
        for head in range(4):
            want = torch.tensor(by_hand(case, row, head), dtype=torch.float64)
            torch.testing.assert_close(out[row, head], want, rtol=1e-6, atol=1e-9)


def test_the_window_counts_the_row_itself():
    case = make_case(kv_lens=[50], heads=(2, 2), dim=8, spans="none")
    v = case.args["value_cache"]
    out = case.run(steered_attention_reference, case.empty_out(torch.float64), window=1)
    block = case.args["block_table"][case.args["reqs"][0], 49 // 16]
    torch.testing.assert_close(out[case.rows[0]], v[block, 49 % 16].double())


def test_the_reference_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None;"
        "from adaptvis_vllm.kernels import steered_attention_reference"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
