"""What is collected when; in a process of its own, for that of the tests collects otherwise."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from adaptvis_vllm.engine import garbage

with garbage.importing():
    assert not gc.isenabled()
assert gc.isenabled()
assert gc.get_freeze_count()
gc.unfreeze()
assert not gc.get_freeze_count()
gc.disable()
with garbage.importing():
    pass
assert not gc.isenabled()
gc.unfreeze()
garbage._keep()
gc.unfreeze()
assert gc.get_freeze_count()
"""


def test_what_imports_left_is_frozen() -> None:
    """As vLLM is imported, and to the end of a process that ends with its engine."""
    subprocess.run([sys.executable, "-P", "-c", CODE], check=True)
