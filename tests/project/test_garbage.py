"""What is collected when, in processes of their own: that of the tests collects otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMAND = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))  # run last
import adaptvis_vllm.cli
from adaptvis_vllm import _garbage
_garbage.ours()
_garbage.imported()
print(gc.get_freeze_count() > 0)
gc.unfreeze()  # vLLM's, as an engine ends
print(gc.get_freeze_count() > 0)
"""
ACTOR = """
import gc, sys
from adaptvis_vllm import _garbage
_garbage.imported()
print(gc.get_freeze_count())
with _garbage.importing():
    print(gc.isenabled())
print(gc.isenabled(), gc.get_freeze_count() > 0)
gc.unfreeze()
print(gc.get_freeze_count())
sys.modules["vllm.entrypoints.llm"] = gc  # an engine was there
with _garbage.importing():
    print(gc.isenabled())
print(gc.get_freeze_count())
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        # To the end of a process that ends with its engine; thawed for Python's own last look.
        (COMMAND, ["True", "True", "0"]),
        # Elsewhere while vLLM is imported for the first time, and until an engine ends.
        (ACTOR, ["0", "False", "True True", "0", "True", "0"]),
    ],
    ids=["a command", "an actor"],
)
def test_what_imports_left_is_frozen(program: str, printed: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == printed
