"""Steps with a steered row leave FULL CUDA graphs: on the runners' real dispatch code.

Graphs are not captured here; which one a step would replay is decided on the host.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.engine import close, make_llm

from adaptvis_vllm import plugin
from adaptvis_vllm.engine.plan import StepPlan
from adaptvis_vllm.engine.steps import Steering

plugin.register()


@pytest.fixture(scope="module")
def config(model: Path) -> Any:
    """A configuration as on a GPU; the engine lends its process groups."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs

    llm = make_llm(model)
    config = EngineArgs(str(model), dtype="float32", max_model_len=256).create_engine_config()
    compilation = config.compilation_config
    compilation.cudagraph_capture_sizes = [1, 2, 4, 8, 16, 32, 64]
    compilation.max_cudagraph_capture_size = 64
    config.scheduler_config.max_num_seqs = 32
    with set_current_vllm_config(config):
        yield config
    close(llm)


STEERED = SimpleNamespace(alphas=(0.5, 2.0))


def steering(steered: bool) -> Steering:
    out = Steering(torch.device("cpu"), {0: 4})
    out.plan = StepPlan(steers=[object()]) if steered else None
    return out


MODES = ("FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE", "PIECEWISE")


@pytest.mark.parametrize("mode", MODES)
def test_runner_v1(config: Any, mode: str) -> None:
    from vllm.config import CompilationMode, CUDAGraphMode
    from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher

    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    config.compilation_config.cudagraph_mode = CUDAGraphMode[mode]
    config.compilation_config.splitting_ops = list(config.compilation_config._attention_ops)
    dispatcher = CudagraphDispatcher(config)
    dispatcher.initialize_cudagraph_keys(CUDAGraphMode[mode], 1)

    def chosen(uniform: bool, value: Steering | None) -> Any:
        dispatcher.adaptvis = value
        return dispatcher.dispatch(num_tokens=4, uniform_decode=uniform)[0]

    piecewise = mode in ("FULL_AND_PIECEWISE", "PIECEWISE")
    otherwise = CUDAGraphMode.PIECEWISE if piecewise else CUDAGraphMode.NONE
    for uniform in (True, False):
        # Four prompts with one token left by the prefix cache look like four decodes.
        plain = chosen(uniform, None)
        assert (plain == CUDAGraphMode.FULL) == (mode == "FULL" or (uniform and "FULL" in mode))
        assert chosen(uniform, steering(False)) == plain
        assert chosen(uniform, steering(True)) == otherwise


@pytest.mark.parametrize("mode", MODES)
def test_runner_v2(config: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    monkeypatch.setattr(type(current_platform), "get_global_graph_pool", lambda *_: None)
    manager = CudaGraphManager(config, torch.device("cpu"), CUDAGraphMode[mode], 1)
    manager._graphs_captured = True

    def chosen(uniform: int | None, value: Steering | None) -> Any:
        manager.adaptvis = value
        return manager.dispatch(4, 4, uniform, 0).cg_mode

    piecewise = mode in ("FULL_AND_PIECEWISE", "PIECEWISE")
    otherwise = CUDAGraphMode.PIECEWISE if piecewise else CUDAGraphMode.NONE
    before = {key: list(found) for key, found in manager._candidates.items()}
    for uniform in (1, None):
        plain = chosen(uniform, None)
        assert (plain == CUDAGraphMode.FULL) == bool(mode == "FULL" or (uniform and "FULL" in mode))
        assert chosen(uniform, steering(False)) == plain
        assert chosen(uniform, steering(True)) == otherwise
        assert chosen(uniform, None) == plain
    assert manager._candidates == before


@pytest.mark.parametrize("mode", ["NONE", *MODES])
def test_side_rows_are_tokens_to_v2(
    config: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To graphs, and to other data-parallel ranks; other steps are told as they are."""
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu import dp_utils, model_runner
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    monkeypatch.setattr(type(current_platform), "get_global_graph_pool", lambda *_: None)
    manager = CudaGraphManager(config, torch.device("cpu"), CUDAGraphMode[mode], 1)
    manager._graphs_captured = True
    told: list[tuple[Any, ...]] = []

    def sync(_: Any, batch: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        told.append((*args[:3], kwargs["max_query_len"], kwargs["uniform_decode"]))
        return batch, None

    monkeypatch.setattr(dp_utils, "sync_cudagraph_and_dp_padding", sync)

    def chosen(value: Steering | None, eager: bool) -> Any:
        manager.adaptvis = value
        return model_runner.dispatch_cg_and_sync_dp(
            *(manager, 4, 4, 1, 2, 0),
            max_query_len=1,
            need_eager=eager,
            uniform_decode=True,
        )[0]

    with_sides = Steering(torch.device("cpu"), {0: 4})
    with_sides.plan = StepPlan(sides=[STEERED] * 3)
    for eager in (False, True):
        told.clear()
        batch = chosen(with_sides, eager)
        assert batch.num_tokens == (16 if "PIECEWISE" in mode and not eager else 10)
        assert batch.cg_mode != CUDAGraphMode.FULL
        assert chosen(steering(False), eager) == chosen(None, eager)
        assert told == [(10, 4, None, None, False), *[(4, 4, 1, 1, True)] * 2]


def test_compile_cache_key_does_not_depend_on_requests(config: Any) -> None:
    """The engine's hash, part of the compile cache key, changes with server defaults only."""
    from adaptvis_vllm import AdaptVis
    from adaptvis_vllm.engine.admission import Admission

    before = config.compute_hash()
    admission = Admission(config)
    from vllm import SamplingParams

    for threshold in (0.1, 0.5):
        params = SamplingParams(extra_args=AdaptVis(0.5, 1.5, threshold).extra_args())
        assert admission.resolve(params.extra_args).threshold == threshold
    assert config.compute_hash() == before
