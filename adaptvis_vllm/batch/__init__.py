"""Large batches: files or Ray datasets of rows, answered by a pool of engines.

Imports `offline` and what is below it; nothing of servers or evaluation. Ray only where it is
needed: one engine in this process needs none.
"""

from typing import Any

__all__ = ["Settings", "answer", "run"]


def __getattr__(name: str) -> Any:
    if name == "answer":
        from adaptvis_vllm.batch.dataset import answer

        return answer
    if name == "run":
        from adaptvis_vllm.batch.driver import run

        return run
    if name == "Settings":
        from adaptvis_vllm.batch.job import Settings

        return Settings
    raise AttributeError(name)
