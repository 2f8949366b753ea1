"""The kernel under test: compiled where there is a GPU, else in Triton's interpreter.

Triton decides at each `@triton.jit` whether a function is interpreted, and other test modules
may have imported it compiled. So the kernel modules are loaded a second time, interpreted, and
stay out of `sys.modules`.
"""

import importlib
import sys
from types import ModuleType

import pytest
import torch

PACKAGE = "adaptvis_vllm.kernels.gpu"


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def launch(device: str):
    """The module `adaptvis_vllm.kernels.gpu.launch`."""
    if device == "cuda":
        yield importlib.import_module(f"{PACKAGE}.launch")
        return
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder
    from triton.runtime.jit import JITFunction

    patch = pytest.MonkeyPatch()
    # Triton's own library functions, compiled if Triton was imported so, run interpreted too.
    patch.setattr(JITFunction, "__call__", lambda f, *a, **k: InterpretedFunction(f.fn)(*a, **k))
    patch.setattr(InterpreterBuilder, "create_dot", dot_of_bfloat16(InterpreterBuilder.create_dot))
    yield load_interpreted()
    patch.undo()


def dot_of_bfloat16(create_dot):
    """Triton's interpreter multiplies the bit patterns of bfloat16 as integers: widen them."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    return lambda self, a, b, *rest: create_dot(self, widen(a), widen(b), *rest)


def load_interpreted() -> ModuleType:
    import triton

    names = [f"{PACKAGE}.{name}" for name in ("steer", "reduce", "weights", "commit", "launch")]
    package = importlib.import_module(PACKAGE)
    patch = pytest.MonkeyPatch()
    patch.setattr(triton.knobs.runtime, "interpret", True)
    for name in names:
        patch.delitem(sys.modules, name, raising=False)
    try:
        launch = importlib.import_module(names[-1])
        launch.commit = importlib.import_module(names[-2])
        launch.weights = importlib.import_module(names[-3])
        return launch
    finally:
        for name in names:
            sys.modules.pop(name, None)
            vars(package).pop(name.rpartition(".")[2], None)
        patch.undo()


@pytest.fixture(scope="session")
def commit(launch: ModuleType) -> ModuleType:
    """The module `adaptvis_vllm.kernels.gpu.commit`."""
    return getattr(launch, "commit", None) or importlib.import_module(f"{PACKAGE}.commit")


@pytest.fixture(scope="session")
def steered_attention(launch: ModuleType):
    return launch.steered_attention


@pytest.fixture(scope="session")
def attention_weights(launch: ModuleType):
    """The function of `adaptvis_vllm.kernels.gpu.weights`."""
    module = getattr(launch, "weights", None) or importlib.import_module(f"{PACKAGE}.weights")
    return module.attention_weights
