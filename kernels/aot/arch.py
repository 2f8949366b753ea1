"""GPU architectures: what a multiprocessor offers, and what a compiled kernel takes of it."""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Arch:
    name: str
    backend: str  # "cuda" or "hip"
    version: int | str
    warp_size: int
    num_sms: int
    shared_per_sm: int  # bytes
    reserved_shared: int  # bytes that the driver takes of each block
    registers: int  # 32-bit, per SM
    max_threads: int  # resident per SM
    converts_e4m3: bool
    float8: dict[str, str] = field(
        default_factory=lambda: {"e4m3": "fp8e4nv", "e5m2": "fp8e5"}, hash=False
    )

    def target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self.backend, self.version, self.warp_size)


ARCHES = {
    a.name: a
    for a in (
        Arch("sm_80", "cuda", 80, 32, 108, 164 << 10, 1024, 65536, 2048, False),
        Arch("sm_90", "cuda", 90, 32, 132, 228 << 10, 1024, 65536, 2048, True),
        Arch("sm_100", "cuda", 100, 32, 148, 228 << 10, 1024, 65536, 2048, True),
        Arch(
            "gfx942",
            "hip",
            "gfx942",
            64,
            304,
            64 << 10,
            0,
            4 * 512 * 64,
            2048,
            True,
            {"e4m3": "fp8e4b8", "e5m2": "fp8e5b16"},
        ),
    )
}


@dataclass(frozen=True)
class Resources:
    registers: int  # per thread
    spill_bytes: int  # local memory per thread
    shared_bytes: int  # per block


def resources(compiled: Any, arch: Arch) -> Resources:
    """Read off the finished machine code."""
    if arch.backend == "hip":
        text = compiled.asm["amdgcn"]

        def count(name: str) -> int:
            return int(re.findall(rf"\.{name}:\s+(\d+)", text)[-1])

        spills = 4 * count("vgpr_spill_count") + count("private_segment_fixed_size")
        return Resources(count("vgpr_count"), spills, compiled.metadata.shared)
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _resource_usage(compiled.asm["cubin"])))
    spills = int(used["STACK"]) + int(used["LOCAL"])
    return Resources(int(used["REG"]), spills, compiled.metadata.shared)


def _resource_usage(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        command = [str(tool), "--dump-resource-usage", f.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resident_blocks(used: Resources, num_warps: int, arch: Arch) -> int:
    """Blocks that fit one multiprocessor at a time."""
    threads = num_warps * arch.warp_size
    registers = -(-used.registers // 8) * 8 * threads  # allotted in eights
    by_shared = arch.shared_per_sm // (used.shared_bytes + arch.reserved_shared or 1)
    return min(arch.registers // registers, by_shared, arch.max_threads // threads)
