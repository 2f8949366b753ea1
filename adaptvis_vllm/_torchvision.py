"""Lets `import torchvision` pass where its compiled part does not load.

A CPU build of PyTorch beside a CUDA build of torchvision is such a place. vLLM and the
image processors of transformers need only torchvision's Python part there.

`python -m adaptvis_vllm._torchvision` makes the repair permanent in an environment that
needs it, for every process: a `.pth` file in site-packages that calls `watch`.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PTH = "adaptvis_torchvision.pth"

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_fragment = None  # the schemas live as long as this object


def ensure() -> None:
    """Call before the first import of torchvision, in every process; again is harmless.

    Does nothing where torchvision is absent, loaded, or works. Elsewhere it declares the
    two operators that torchvision's Python part annotates; they have no implementation.
    """
    global _fragment
    spec = None if "torchvision" in sys.modules else find_spec("torchvision")
    if spec is None or _fragment is not None:
        return
    import torch

    for folder in spec.submodule_search_locations or ():
        for library in Path(folder).glob("_C.*"):
            try:
                torch.ops.load_library(library)
            except OSError:
                continue
            return
    _fragment = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _fragment.define(schema)


class _Watcher(MetaPathFinder):
    """Calls `ensure` just before torchvision is imported, then steps aside."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            ensure()


def watch() -> None:
    """Cheap at start-up: nothing is imported until torchvision is."""
    sys.meta_path.insert(0, _Watcher())


def repair() -> str:
    """Write the `.pth` file if torchvision does not import without it; says what it did."""
    pth = Path(sysconfig.get_path("purelib")) / _PTH
    pth.unlink(missing_ok=True)
    if find_spec("torchvision") is None:
        return "torchvision is not installed"
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    if probe.returncode == 0:
        return "torchvision works"
    pth.write_text("import adaptvis_vllm._torchvision; adaptvis_vllm._torchvision.watch()\n")
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True)
    return "torchvision's compiled part does not load here; its Python part is made importable"


if __name__ == "__main__":
    print(repair())
