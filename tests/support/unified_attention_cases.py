"""Run with names of cases: alpha = 1 against vLLM's own attention kernel on the same cache.

A program of its own because vLLM picks its Triton once per process. Without a GPU both kernels
run in Triton's interpreter. Prints one JSON line per case: name, relative difference.
"""

import json
import os
import sys
import types

import torch

CASES = {
    "plain": {},
    "gqa7-blocks48": {"heads": (7, 1), "block_size": 48},
    "head80": {"dim": 80},
    "mha-head128-fused": {"heads": (2, 2), "dim": 128, "layout": "fused"},
    "hnd": {"layout": "hnd"},
    "window": {"window": 40},
    "soft-cap": {"soft_cap": 5.0},
    "sinks": {"sinks": True},
}
KV_LENS = [1, 32, 123]


def use_interpreter() -> None:
    """vLLM's CPU build takes Triton only if Triton lists a CPU backend."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends import backends

    driver = types.SimpleNamespace(is_active=lambda: True)
    backends.setdefault("cpu", types.SimpleNamespace(driver=driver))


def compare(name: str, device: str) -> float:
    from adaptvis_vllm.kernels import steered_attention
    from adaptvis_vllm.kernels.testing import make_case
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention

    options = dict(CASES[name])
    if options.pop("sinks", False):
        heads = options.get("heads", (4, 2))[0]
        options["sinks"] = torch.linspace(-2, 3, heads, device=device)
    case = make_case(kv_lens=KV_LENS, alpha=1.0, spans="middle", device=device, **options)
    a = case.args
    steered = case.run(steered_attention)

    num_rows = len(KV_LENS)
    rows = a["rows"].long()
    theirs = torch.full_like(a["query"][rows], float("nan"))
    one = torch.ones(num_rows, a["key_cache"].shape[2], device=device)
    unified_attention(
        q=a["query"][rows],
        k=a["key_cache"],
        v=a["value_cache"],
        out=theirs,
        cu_seqlens_q=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
        max_seqlen_q=1,
        seqused_k=a["kv_lens"],
        max_seqlen_k=a["max_kv_len"],
        softmax_scale=a["scale"],
        causal=True,
        window_size=(a.get("window", 0) - 1, 0),
        block_table=a["block_table"][a["reqs"].long()],
        softcap=a.get("soft_cap", 0.0),
        q_descale=None,
        k_descale=one,
        v_descale=one,
        sinks=a.get("sinks"),
    )
    return ((steered[rows] - theirs).norm() / theirs.norm()).item()


if __name__ == "__main__":
    os.environ["TRITON_F32_DEFAULT"] = "ieee"  # theirs would use tf32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        use_interpreter()
    for name in sys.argv[1:]:
        print(json.dumps([name, compare(name, device)]), flush=True)
