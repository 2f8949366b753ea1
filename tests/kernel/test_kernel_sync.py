"""The launch path never waits for the device."""

import pytest
import torch
from adaptvis_vllm.kernels.testing import make_case
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class Allocations(TorchDispatchMode):
    """Records every operator; the launch path may allocate and nothing else."""

    def __init__(self):
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


class NoKernel:
    def __init__(self):
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("max_kv_len", [16, 4096], ids=["one-launch", "two-launches"])
def test_the_host_reads_no_tensor(launch, monkeypatch, max_kv_len):
    case = make_case(kv_lens=[5, 16], heads=(4, 2))
    out = case.empty_out()
    steer, reduce = NoKernel(), NoKernel()
    monkeypatch.setattr(launch, "steer_kernel", steer)
    monkeypatch.setattr(launch, "reduce_kernel", reduce)

    def refuse(*args, **kwargs):
        raise AssertionError("the host read a tensor")

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, refuse)
    one = torch.ones(())
    with Allocations() as seen:
        case.run(launch.steered_attention, out, max_kv_len=max_kv_len, k_scale=one, v_scale=one)
    assert set(seen.operators) <= {"aten.empty.memory_format"}
    assert len(steer.grids) == 1
    assert len(reduce.grids) == (1 if max_kv_len > 64 else 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_reports_no_synchronisation(steered_attention):
    case = make_case(kv_lens=[5, 300], device="cuda")
    out = case.empty_out()
    case.run(steered_attention, out)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run(steered_attention, out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_follows_its_buffers(steered_attention):
    """Capture once, change what the buffers hold, replay."""
    case = make_case(kv_lens=[200, 31], device="cuda")
    out = case.empty_out()
    case.run(steered_attention, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run(steered_attention, out, max_kv_len=4096)
    case.args["alpha"].mul_(0.5)
    case.args["kv_lens"].copy_(torch.tensor([130, 7]))
    case.args["query"].normal_()
    out.fill_(float("nan"))
    graph.replay()
    want = case.run(steered_attention)
    rows = case.args["rows"].long()
    torch.testing.assert_close(out[rows], want[rows], rtol=1e-5, atol=1e-5)
