"""The C++ of this folder from Python: compiled at first use, kept in a folder, called through
ctypes; and `steer.cpp`'s function."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

SOURCES = tuple(Path(__file__).with_name(n) for n in ("steer.cpp", "weights.cpp", "pages.h"))
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_POINTERS = (
    *("query", "output", "cache", "block_table", "rows", "reqs", "kv_lens", "slots", "alpha"),
    *("span_words", "span_starts", "span_lens", "rules", "heads", "own", "key", "value", "sinks"),
)
_STRIDES = ("query_stride", "output_stride", "table_stride")
_INTS = (
    *("first_side", "num_rows", "num_heads", "kv_heads", "dim", "block", "window", "packed"),
    *("threads", "value_type", "cache_type"),
)

_WANTED = {"alpha": torch.float32, "sinks": torch.float32, "offsets": torch.int64}


class Rows(ctypes.Structure):
    """The argument of `adaptvis_steer_rows`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int32) for name in _INTS),
        ("scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
    )


def steer_rows(
    output: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    query: torch.Tensor,  # [num_tokens, num_heads, head_dim]
    kv_cache: torch.Tensor,  # [num_blocks, num_kv_heads, block_size, 2 * head_dim]
    block_table: torch.Tensor,  # [num_reqs, max_blocks] int32
    rows: torch.Tensor,  # [E] int32, and so on as in `steered_attention`
    reqs: torch.Tensor,
    kv_lens: torch.Tensor,
    slots: torch.Tensor,
    alpha: torch.Tensor,
    span_words: torch.Tensor,
    span_starts: torch.Tensor,
    span_lens: torch.Tensor,
    rules: torch.Tensor,
    heads: torch.Tensor,  # [E, ceil(num_heads / 32)] int32
    own: torch.Tensor,  # [E] int32: the entry's side rows, at most 2; 0 for a row in its place
    *,
    key: torch.Tensor | None = None,  # [side rows, num_kv_heads, head_dim] of the cache's dtype
    value: torch.Tensor | None = None,  # likewise
    first_side: int = 0,  # the first side row's token index
    scale: float,
    packed: bool,  # the cache's pages are those of vLLM's `amx` layout
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,  # [num_heads] float32
) -> None:
    """Overwrite the steered rows of `output`; RuntimeError where `problem()` is one, ValueError
    for tensors that are not as said here: the compiled code would read and write elsewhere."""
    tokens = {"query": query, "output": output}
    tensors: dict[str, Any] = {
        "block_table": block_table,
        "rows": rows,
        "reqs": reqs,
        "kv_lens": kv_lens,
        "slots": slots,
        "alpha": alpha,
        "span_words": span_words,
        "span_starts": span_starts,
        "span_lens": span_lens,
        "rules": rules,
        "heads": heads,
        "own": own,
    }
    num_heads, dim = query.shape[1:]
    _, kv_heads, block, _ = kv_cache.shape
    if sinks is not None:
        tensors["sinks"] = sinks
    _check(tokens, kv_cache, tensors)
    if key is not None and value is not None:
        for name, side in (("key", key), ("value", value)):
            if side.dtype != kv_cache.dtype or not side.is_contiguous():
                raise ValueError(f"{name} of side rows must be contiguous {kv_cache.dtype}")
        tensors |= {"key": key, "value": value}
    _library()(
        Rows(
            **{name: tensor.data_ptr() for name, tensor in (tokens | tensors).items()},
            cache=kv_cache.data_ptr(),
            query_stride=query.stride(0),
            output_stride=output.stride(0),
            table_stride=block_table.stride(0),
            first_side=first_side,
            num_rows=len(rows),
            num_heads=num_heads,
            kv_heads=kv_heads,
            dim=dim,
            block=block,
            window=window,
            packed=packed,
            threads=torch.get_num_threads(),
            value_type=TYPES[query.dtype],
            cache_type=TYPES[kv_cache.dtype],
            scale=scale,
            soft_cap=soft_cap,
        )
    )


def _check(
    tokens: dict[str, torch.Tensor], kv_cache: torch.Tensor, tensors: dict[str, torch.Tensor]
) -> None:
    """No assert: `python -O` would leave memory unguarded."""
    query, output = tokens["query"], tokens["output"]
    heads, dim = query.shape[1:]
    _, kv_heads, block, twice = kv_cache.shape
    check_sizes(dim, block)
    if output.shape[1:] != (heads, dim) or twice != 2 * dim or heads % kv_heads:
        shapes = f"{[*query.shape]}, {[*output.shape]} and {[*kv_cache.shape]}"
        raise ValueError(f"query, output and kv_cache do not fit together: {shapes}")
    if query.dtype != output.dtype:
        raise ValueError(f"output is {output.dtype}, query {query.dtype}")
    if not kv_cache.is_contiguous():
        raise ValueError("kv_cache must be contiguous")
    for name, t in tokens.items():
        if t.stride()[1:] != (dim, 1):
            raise ValueError(f"the heads of {name} must be contiguous, not of strides {t.stride()}")
    check_lists(heads, tensors)


def check_sizes(dim: int, block: int) -> None:
    if dim % 16 or block % 16:  # as vLLM's CPU backend has them
        raise ValueError(f"head_dim {dim} and block_size {block} must be multiples of 16")


def check_lists(num_heads: int, tensors: dict[str, torch.Tensor]) -> None:
    """What says of entries where they lie and how they are steered, by name."""
    words = (len(tensors["rows"]), -(-num_heads // 32))
    if tensors["heads"].shape != words or not tensors["heads"].is_contiguous():
        raise ValueError(f"heads must be {[*words]} words, not {[*tensors['heads'].shape]}")
    for name, t in tensors.items():
        wanted = _WANTED.get(name, torch.int32)
        if t.dtype != wanted or t.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous {wanted}, not {t.dtype} {t.stride()}")


def problem() -> str | None:
    """Why the compiled rows cannot be had here; None where they can. Compiles if need be."""
    try:
        _library()
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


@functools.cache
def _library() -> Any:
    function = loaded().adaptvis_steer_rows
    function.argtypes, function.restype = [ctypes.POINTER(Rows)], None
    return function


def loaded() -> ctypes.CDLL:
    """All compiled functions; OSError or RuntimeError where they cannot be had."""
    return ctypes.CDLL(str(_compiled()))


def _compiled() -> Path:
    """The shared library for these sources, processor and compiler."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    compiler = next((shlex.split(name) for name in names if shutil.which(shlex.split(name)[0])), [])
    if not compiler:
        raise RuntimeError(f"no C++ compiler ({', '.join(names)}) is in PATH")
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    command = [*compiler, "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", *_processor()]
    texts = b"".join(source.read_bytes() for source in SOURCES)
    key = hashlib.sha256(texts + version + shlex.join(command).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptvis_vllm"
    library = folder / f"cpu-{key[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:  # others may be at it too
        made = Path(own) / "cpu.so"
        files = [str(source) for source in SOURCES if source.suffix == ".cpp"]
        done = subprocess.run(
            [*command, *files, "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}")
        made.replace(library)
    return library


def _processor() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        return ["-march=x86-64-v4", "-mprefer-vector-width=512"]
    return ["-march=x86-64-v3"] if capability == "AVX2" else []
