"""What a GPU runs, on a CPU: Model Runner V2, TRITON_ATTN and our kernel, interpreted.

Run as a script: model folder, output file, "sync" or "async" scheduling. The platform stays
the CPU's; it only names another attention backend, and claims the compute capability that
this backend asks for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from adaptvis_vllm.engine.runner import interpreted

BACKEND = "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend"


def use_triton_attention() -> None:
    """Before the engine is made."""
    import torch
    from vllm.platforms.cpu import CpuPlatform

    torch.cuda.get_device_capability = lambda *_: (9, 0)
    CpuPlatform.get_attn_backend_cls = classmethod(lambda *_, **__: BACKEND)


def use_async_scheduling() -> None:
    """vLLM forces it off on a CPU."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def count_kernel_calls() -> list[int]:
    """One entry a call."""
    from adaptvis_vllm.kernels.gpu.launch import Layer

    calls: list[int] = []

    def call(
        self: Any, out: Any, query: Any, table: Any, rows: Any, *more: Any, **named: Any
    ) -> None:
        calls.append(len(rows))
        original(self, out, query, table, rows, *more, **named)

    original, Layer.__call__ = Layer.__call__, call
    return calls


def count_commits() -> list[tuple[int, ...]]:
    """The grid of each launch that writes keys and values of chosen side rows."""
    from adaptvis_vllm.kernels.gpu import commit

    grids, kernel = [], commit.commit_kernel

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return kernel[grid]

    commit.commit_kernel = Counted()
    return grids


def count_plans(steering: Any) -> list[int]:
    """Requests with side rows of each step that holds a steered row."""
    plans, locate = [], steering.locate

    def counted(*args: Any) -> None:
        plan = steering.plan
        if plan.sides or plan.steers:  # other plans only capture
            plans.append(len(plan.sides))
        locate(*args)

    steering.locate = counted
    return plans


def results(llm: Any) -> dict[str, Any]:
    from support.engine import counted_steps, generate, prompt, runner, sampling, scheduler
    from support.maps_parity import as_text
    from support.triton_cases import CASES

    groups = [group for groups in runner(llm).attn_groups for group in groups]
    out: dict[str, Any] = {
        "backends": sorted({group.backend.get_name() for group in groups}),
        "scheduler": type(scheduler(llm)).__name__,
    }
    calls, commits = count_kernel_calls(), count_commits()
    plans = count_plans(runner(llm).adaptvis)
    items = [prompt(image, text) for image, text, _ in CASES]
    params = [sampling(s, max_tokens=4, ignore_eos=True, logprobs=5) for *_, s in CASES]
    # A mixed batch first; then each alone, on the blocks that the batch left in the cache.
    with counted_steps(llm) as steps:
        mixed = generate(llm, items, params)
        alone = [generate(llm, [i], p)[0] for i, p in zip(items, params, strict=True)]
    out["kernel_calls"], out["commits"], out["plans"] = len(calls), commits, plans
    out["layers"] = len(runner(llm).adaptvis.layers)
    out["steps"] = [sorted(step.values()) for step in steps]
    for name, outputs in (("mixed", mixed), ("alone", alone)):
        out[name] = [
            {
                "token_ids": list(o.outputs[0].token_ids),
                "logprobs": [[[t, e.logprob] for t, e in o.outputs[0].logprobs[0].items()]],
                "adaptvis": o.adaptvis,
                "maps": as_text(o.adaptvis_maps),
            }
            for o in outputs
        ]
    return out


if __name__ == "__main__":
    import conftest  # noqa: F401  the environment of tests

    interpreted.enable()
    use_triton_attention()
    if sys.argv[3] == "async":
        use_async_scheduling()
    from support.engine import make_llm

    llm = make_llm(Path(sys.argv[1]), max_num_seqs=4, enable_prefix_caching=True)
    Path(sys.argv[2]).write_text(json.dumps(results(llm)))
