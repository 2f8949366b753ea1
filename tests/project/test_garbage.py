"""What is collected when, and how a command ends: in processes of their own, for that of the tests
collects otherwise."""

from __future__ import annotations

import os
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


ENDS = """
import atexit, sys
import adaptvis_vllm.cli as cli
atexit.register(print, "others' functions")
class Slow:
    def __del__(self): print("taken apart")
slow = Slow()
cli.COMMANDS["slow"] = lambda argv: STATUS
sys.argv = ["adaptvis", "slow"]
sys.exit(cli.run())
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


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_ends_at_once(status: int) -> None:
    """After what others have registered, and what was printed, with its status."""
    program = ENDS.replace("STATUS", str(status))
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "others' functions\n", "")


def test_nobody_reads_what_it_prints() -> None:
    """It did not end well, and says why."""
    program = ENDS.replace("STATUS", "0")
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        env=buffered,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 1
    assert said.splitlines()[-1] == "adaptvis: [Errno 32] Broken pipe"
