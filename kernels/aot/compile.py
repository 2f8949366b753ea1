"""Compiles the kernels for GPUs that are not there: python -m adaptvis_vllm.kernels.aot

Prints what each variant takes of a multiprocessor and the bytes it must move, and fails if a
variant of a named model spills registers.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from typing import Any

from ..gpu.commit import BLOCK, COLUMNS
from ..gpu.config import PAIR, Tile, choose_splits, choose_tile, reduce_constants, steer_constants
from ..gpu.weights import STAGES, WARPS, weights_constants
from .arch import ARCHES, Arch, Resources, resident_blocks, resources
from .roofline import BANDWIDTH, MODELS, Model, bytes_moved, floor_us, keys_read

# What Triton's launcher finds divisible by 16 in vLLM's tensors.
ALIGNED = frozenset(
    [
        "p_out",
        "p_q",
        "p_k",
        "p_v",
        "p_sinks",
        "k_scale",
        "v_scale",
        "window",
        "s_ot",
        "s_oh",
        "s_qt",
        "s_qh",
        "s_kb",
        "s_kn",
        "s_kh",
        "s_vb",
        "s_vn",
        "s_vh",
        "p_key",
        "p_value",
        "k_own",
        "s_key",
        "s_value",
    ]
)
KEPT = {1: "*u8", 2: "*i16", 4: "*i32"}
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "e4m3": 1, "e5m2": 1}


@dataclass(frozen=True)
class Variant:
    """One compilation of one kernel."""

    model: Model
    dtype: str = "bf16"
    kv_dtype: str = ""  # "": dtype
    soft_cap: bool = False
    sinks: bool = False
    splits: int = 0  # 0: as for one row of the model's context
    kernel: str = "steer"
    sides: bool = False  # side rows among its rows
    named: bool = False  # a supported model's own variant, whose bytes are worth printing

    @property
    def cache_dtype(self) -> str:
        return self.kv_dtype or self.dtype

    @property
    def label(self) -> str:
        m = self.model
        if self.kernel == "commit":
            return f"commit {self.cache_dtype}"
        shape = f"D{m.head_dim}" + (f" G{m.group}" if self.kernel != "reduce" else "")
        parts = [m.name if self.named else shape, self.dtype]
        if self.kv_dtype:
            parts.append(f"kv {self.kv_dtype}")
        flags = {"window": m.window, "soft cap": self.soft_cap, "sinks": self.sinks}
        parts += [name for name, on in flags.items() if on]
        parts += ["sides"] if self.sides else []
        if self.kernel != "steer":
            parts.append(self.kernel)
        elif self.splits == 1:
            parts.append("unsplit")
        return " ".join(parts)

    def tile(self, arch: Arch) -> Tile:
        kv_bytes = BYTES[self.cache_dtype]
        is_hip = arch.backend == "hip"
        return choose_tile(head_dim=self.model.head_dim, kv_bytes=kv_bytes, is_hip=is_hip)

    def is_split(self, arch: Arch) -> bool:
        """One row of the model's context, unless the variant says it."""
        m = self.model
        splits = self.splits or choose_splits(
            self.tile(arch),
            rows=1,
            num_kv_heads=m.num_kv_heads,
            max_keys=keys_read(m, m.context),
            num_sms=arch.num_sms,
        )
        return splits > 1


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    variant: Variant
    arch: Arch
    tile: Tile
    resources: Resources
    blocks_per_sm: int

    @property
    def num_bytes(self) -> int:
        v = self.variant
        kv = BYTES[v.cache_dtype]
        return bytes_moved(v.model, v.model.context, element=BYTES[v.dtype], kv_element=kv)

    def __str__(self) -> str:
        r, c = self.resources, self.tile
        text = (
            f"{self.variant.label:42} {self.arch.name:7} {r.registers:5} {r.spill_bytes:6} "
            f"{r.shared_bytes:7} {c.num_warps:5} {c.num_stages:6} {self.blocks_per_sm:7}"
        )
        if self.variant.named:
            floors = " ".join(f"{floor_us(self.num_bytes, b):8.2f}" for b in BANDWIDTH.values())
            text += f" {self.variant.model.context:8} {self.num_bytes / 2**20:8.2f} {floors}"
        return text


HEADER = (
    f"{'variant':42} {'arch':7} {'regs':>5} {'spills':>6} {'shared':>7} {'warps':>5} {'stages':>6} "
    f"{'blocks':>7} {'context':>8} {'MiB/row':>8} " + " ".join(f"{g + ' us':>8}" for g in BANDWIDTH)
)


def model_variants() -> list[Variant]:
    """What the named models launch: split and unsplit, with a float8 cache, the reduction, and the
    weights of maps."""
    split = [Variant(m, named=True) for m in MODELS]
    unsplit = [Variant(m, named=True, splits=1) for m in MODELS]
    float8 = [Variant(m, kv_dtype="e4m3", named=True) for m in MODELS]
    # The reduction depends on nothing but the head size and the window.
    shapes = {(m.head_dim, m.window): m for m in MODELS}
    reduce = [Variant(m, kernel="reduce") for m in shapes.values()]
    weights = [Variant(m, kv_dtype=kv, kernel="weights") for m in MODELS for kv in ("", "e4m3")]
    sides = [replace(v, sides=True) for v in (*split, *unsplit, *reduce)]
    sides += [replace(v, sides=True, named=False) for v in float8]  # some spill up to 88 bytes
    commit = [Variant(MODELS[0], "fp32", kv, kernel="commit") for kv in ("e4m3", "bf16", "fp32")]
    return list(dict.fromkeys(split + unsplit + float8 + reduce + sides + weights + commit))


def matrix_variants() -> list[Variant]:
    """Every dtype, head size, group, cache dtype and flag."""

    def model(dim: int, group: int, window: int = 0) -> Model:
        return Model("", 4 * group, 4, dim, context=2048, window=window)

    variants = [
        Variant(model(dim, 4), dtype, splits=splits)
        for dtype, dim, splits in product(
            ("fp16", "bf16", "fp32"), (32, 64, 80, 96, 128, 256), (1, 2)
        )
    ]
    variants += [Variant(model(128, group), splits=2) for group in (1, 7, 8, 20)]
    variants += [
        Variant(model(dim, group), dtype, kv, splits=splits, sides=True)
        for (dtype, kv), (dim, group), splits in product(
            (("fp16", ""), ("bf16", ""), ("fp32", ""), ("bf16", "e4m3"), ("bf16", "e5m2")),
            ((64, 4), (128, 1), (128, 8), (256, 4)),
            (1, 2),
        )
    ]
    variants += [
        Variant(model(dim, 4), dtype, kv, splits=2)
        for dtype, kv, dim in product(("fp16", "bf16"), ("e4m3", "e5m2"), (64, 128, 256))
    ]
    for dim in (128, 256):
        variants += [
            Variant(model(dim, 4, window), soft_cap=soft_cap, sinks=sinks, splits=2)
            for window, soft_cap, sinks in (
                (0, False, False),
                (1024, False, False),
                (0, True, False),
                (0, False, True),
                (1024, True, True),
            )
        ]
    return list(dict.fromkeys(variants))


def compile_row(variant: Variant, arch: Arch) -> Row:
    import triton
    from triton.compiler import ASTSource

    from ..gpu.commit import commit_kernel
    from ..gpu.reduce import reduce_kernel
    from ..gpu.steer import steer_kernel
    from ..gpu.weights import weights_kernel

    kernels = {
        "steer": steer_kernel,
        "reduce": reduce_kernel,
        "weights": weights_kernel,
        "commit": commit_kernel,
    }
    kernel = kernels[variant.kernel]
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("unset TRITON_INTERPRET: interpreted kernels do not compile")
    tile = variant.tile(arch)
    types, constants = signature(variant, arch, tile, kernel.arg_names)
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name in ALIGNED and types[name] != "constexpr"
    }
    source = ASTSource(
        kernel,
        types,
        {(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs,
    )
    warps, stages = tile.num_warps, tile.num_stages
    if variant.kernel == "weights":
        warps, stages = WARPS, STAGES
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=arch.target(), options=options)
    used = resources(compiled, arch)
    blocks = resident_blocks(used, warps, arch)
    return Row(variant, arch, replace(tile, num_warps=warps, num_stages=stages), used, blocks)


def signature(
    variant: Variant, arch: Arch, tile: Tile, names: list[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Types and constants, as Triton's launcher would derive them from the tensors."""
    m = variant.model
    cache, is_split = variant.cache_dtype, variant.is_split(arch)
    e4m3_bits = cache == "e4m3" and not arch.converts_e4m3
    scale = "tensor" if variant.kv_dtype else "none"
    constants: dict[str, Any]
    rows = PAIR if variant.sides else 1
    if variant.kernel == "commit":
        constants = {"COLUMNS": COLUMNS, "BLOCK": BLOCK}
    elif variant.kernel == "weights":
        constants = weights_constants(
            num_heads=m.num_heads,
            num_kv_heads=m.num_kv_heads,
            head_dim=m.head_dim,
            block_size=16,
            kv_bytes=BYTES[cache],
            window=m.window,
            soft_cap=float(variant.soft_cap),
            use_sinks=variant.sinks,
            k_scale=scale,
            e4m3_bits=e4m3_bits,
            float8=_float8(variant, arch),
        )
        constants |= {"s_kd": 1} | ({} if variant.sinks else {"p_sinks": None})
        if scale == "none":
            constants |= {"k_scale": None, "k_own": None}
    elif variant.kernel == "reduce":
        constants = dict(reduce_constants(tile, head_dim=m.head_dim, window=m.window, rows=rows))
        if not variant.sides:
            constants["p_own"] = None
    else:
        constants = dict(
            steer_constants(
                tile,
                is_split=is_split,
                num_heads=m.num_heads,
                num_kv_heads=m.num_kv_heads,
                head_dim=m.head_dim,
                block_size=16,
                window=m.window,
                soft_cap=float(variant.soft_cap),
                use_sinks=variant.sinks,
                k_scale=scale,
                v_scale=scale,
                e4m3_bits=e4m3_bits,
                rows=rows,
                float8=_float8(variant, arch) if variant.sides else "",
            ),
            s_kd=1,
            s_vd=1,
        )
        if not is_split:
            constants["p_part"] = None
        if not variant.sinks:
            constants["p_sinks"] = None
        if scale == "none":
            constants |= {"k_scale": None, "v_scale": None}
        if not variant.sides:
            names_of_sides = ("p_own", "p_key", "p_value", "p_kept", "p_where", "k_own")
            constants |= dict.fromkeys(names_of_sides)
        elif scale == "none":
            constants["k_own"] = None
    element = "*" + variant.dtype
    cached = "*u8" if e4m3_bits else "*" + arch.float8.get(cache, cache)
    bits = variant.kernel == "commit" or BYTES[cache] == 1
    kept = KEPT[BYTES[cache]] if bits else "*" + cache
    types = {
        "p_out": element,
        "p_q": element,
        "p_k": cached,
        "p_v": cached,
        "p_key": element,
        "p_value": element,
        "p_kept": kept,
        "p_where": "*i64",
        "p_w": "*fp16",
        "p_offsets": "*i64",
        "p_layers": "*i64",
        "p_chosen": "*i64",
        "k_own": "*fp32",
        "p_part": "*fp32",
        "p_alpha": "*fp32",
        "p_sinks": element,
        "k_scale": "*fp32",
        "v_scale": "*fp32",
        "scale": "fp32",
        "soft_cap": "fp32",
    }
    for name in names:
        types.setdefault(name, "*i32" if name.startswith("p_") else "i32")
    types = {name: "constexpr" if name in constants else types[name] for name in names}
    return types, constants


def _float8(variant: Variant, arch: Arch) -> str:
    """The kernel's name for what is written into a float8 cache; "" for a wider one."""
    if BYTES[variant.cache_dtype] > 1:
        return ""
    return variant.cache_dtype + ("fnuz" if arch.backend == "hip" else "")


def compile_each(
    variants: Iterable[Variant], arches: Iterable[Arch], *, jobs: int = 1
) -> Iterator[Row]:
    """Rows in order, each as soon as it is compiled."""
    work = list(product(arches, variants))
    if jobs == 1:
        yield from (compile_row(v, a) for a, v in work)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(compile_row, *zip(*((v, a) for a, v in work), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", action="store_true", help="only the named models' variants")
    parser.add_argument("--arch", nargs="*", default=list(ARCHES), choices=list(ARCHES))
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    args = parser.parse_args(argv)
    variants = model_variants() + ([] if args.models else matrix_variants())
    rows = []
    print(HEADER)
    for row in compile_each(variants, [ARCHES[a] for a in args.arch], jobs=args.jobs):
        print(row, flush=True)
        rows.append(row)
    spilling = [r for r in rows if r.variant.named and r.resources.spill_bytes]
    print(f"{len(rows)} compiled, {sum(r.resources.spill_bytes > 0 for r in rows)} with spills")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
