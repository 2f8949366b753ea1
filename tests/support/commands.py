"""The command `adaptvis` in this process, which has imported already what takes a new one long.

That it runs as a process too is what `test_readme.py` and others see to.
"""

from __future__ import annotations

import contextlib
import io
from subprocess import CompletedProcess
from typing import Any

import pytest

from adaptvis_vllm import cli
from support.garbage import freeze


def here(*arguments: Any) -> CompletedProcess[str]:
    """`adaptvis ARGUMENTS`; its engine is given back."""
    from vllm.v1.engine.core_client import InprocClient

    made: list[Any] = []
    start = InprocClient.__init__

    def noted(self: Any, *args: Any, **more: Any) -> None:
        made.append(self)
        start(self, *args, **more)

    words = list(map(str, arguments))
    freeze()
    out, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(InprocClient, "__init__", noted)
        try:
            status = cli.main(words)
        finally:
            for client in made:
                client.shutdown()
    return CompletedProcess(words, status, out.getvalue(), errors.getvalue())
