"""The command `adaptvis`: as a process, and in this one, which has imported already what takes a
new one long."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from subprocess import CompletedProcess
from typing import Any

import pytest

from adaptvis_vllm import cli
from support.garbage import freeze


def words(*arguments: Any) -> list[str]:
    """What starts it as a process."""
    return [sys.executable, "-P", "-m", "adaptvis_vllm.cli", *map(str, arguments)]


def apart(*arguments: Any) -> CompletedProcess[str]:
    """`adaptvis ARGUMENTS`, in a process of its own."""
    return subprocess.run(words(*arguments), capture_output=True, text=True)


def here(*arguments: Any) -> CompletedProcess[str]:
    """`adaptvis ARGUMENTS`; its engine is given back."""
    from vllm.v1.engine.core_client import InprocClient

    made: list[Any] = []
    start = InprocClient.__init__

    def noted(self: Any, *args: Any, **more: Any) -> None:
        made.append(self)
        start(self, *args, **more)

    given = list(map(str, arguments))
    freeze()
    out, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(InprocClient, "__init__", noted)
        try:
            status = cli.main(given)
        finally:
            for client in made:
                client.shutdown()
    return CompletedProcess(given, status, out.getvalue(), errors.getvalue())
