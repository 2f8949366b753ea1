"""A test is skipped for one of a few reasons; for any other it fails.

So what a test needs and this machine could have is installed (`.ci/run` does it), and nothing is
passed over in silence.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

# How the reasons begin.
ALLOWED = (
    "needs a GPU",
    "this processor has no AMX",
    "the published question files are not in ",
    "the paper's questions are not at ",
    "others' answers of LLaVA-1.5-7B are not at ",
    "vLLM is not installed",
)
NOT_LISTED = (
    "skipped, but not for a reason of tests/support/skips.py (.ci/run installs what is needed): "
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _judged((yield))


def _judged(report: Any) -> Any:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED):
            report.outcome = "failed"
            report.longrepr = f"{NOT_LISTED}{reason}"
    return report
