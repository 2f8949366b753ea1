"""With alpha = 1 the kernel computes what vLLM's own attention computes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "unified_attention_cases.py"
NAMES = (
    "plain",
    "gqa7-blocks48",
    "head80",
    "mha-head128-fused",
    "hnd",
    "window",
    "soft-cap",
    "sinks",
)


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *NAMES], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line for line in run.stdout.splitlines() if line.startswith("[")]
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_one_equals_unified_attention(differences, name):
    assert differences[name] < 1e-6
