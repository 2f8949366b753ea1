"""What the kernel is tried with, and how near it must come to the float64 reference."""

import torch
from adaptvis_vllm.kernels.gpu.config import Tile

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
TILE = {"tile": Tile(32, num_warps=4, num_stages=3)}
OPTIONS = {
    "window": {"window": 50},
    "window1": {"window": 1},
    "window-beyond": {"window": 4096},
    "soft-cap": {"soft_cap": 5.0},
    "sinks": {"sinks": torch.tensor([1.5, -2.0, 4.0, 0.25])},
    "scales": {"k_scale": 0.7, "v_scale": 1.9},
    "together": {
        "window": 77,
        "soft_cap": 3.0,
        "sinks": torch.tensor([1.5, -2.0, 4.0, 0.25]),
        "k_scale": 0.7,
        "v_scale": 1.9,
    },
}


def assert_close(name: str, ref: torch.Tensor, tri: torch.Tensor, tol: float) -> None:
    error = ((tri.double() - ref.double()).norm() / ref.double().norm()).item()
    assert error < tol, f"{name}: relative error {error:.2e}, allowed {tol:.0e}"
