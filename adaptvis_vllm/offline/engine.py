"""A vLLM engine in this process, as a stream drives it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

from adaptvis_vllm._garbage import importing
from adaptvis_vllm.engine.compilation import settle
from adaptvis_vllm.offline.format import Format, given_up
from adaptvis_vllm.offline.stream import Answer, Doomed, EngineFailed
from adaptvis_vllm.options import cache_bytes


class VllmEngine:
    """An `LLM` and its format.

    options: arguments of `LLM`. make_format: what the engine speaks, from its `LLM`. share: of a
    CPU machine's free memory, for the KV cache if its size is not given.
    """

    def __init__(
        self,
        options: dict[str, Any],
        make_format: Callable[[Any], Format],
        share: float = 0.25,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self.options = options
        self.make_format = make_format
        self.share = share
        self._build()

    def _build(self) -> None:
        options = settle(self.options)
        with importing():
            from vllm import LLM

        size = cache_bytes(options.get("kv_cache_memory_bytes"), self.share)
        self.llm: Any = LLM(**(options | {"kv_cache_memory_bytes": size}))
        scheduler = self.llm.llm_engine.vllm_config.scheduler_config
        # Some wait in the engine, so that a finished row's place is taken in the next step.
        self.window = scheduler.max_num_seqs + max(2, scheduler.max_num_seqs // 4)
        self.format: Format = self.make_format(self.llm)

    def prepare(self, value: Any) -> Any:
        return self.format.prepare(value)

    def enqueue(self, prepared: Any) -> str:
        return self.format.enqueue(prepared)

    def step(self) -> list[tuple[str, Any]]:
        return [(o.request_id, o) for o in self.llm.llm_engine.step() if o.finished]

    def tokens(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for request in self.llm.llm_engine.engine_core.engine_core.scheduler.running:
            # "NUMBER-RANDOM", or with n > 1 "CHOICE_NUMBER-RANDOM".
            name = request.request_id.partition("-")[0].rpartition("_")[2]
            found = request.num_output_tokens
            counts[name] = min(counts.get(name, found), found)
        return counts

    def answer(self, prepared: Any, output: Any) -> Answer:
        reason = given_up(output)
        if reason is not None:
            raise EngineFailed(reason)
        return self.format.answer(prepared, output)

    def refuse(self, value: Any, error: Exception) -> Answer:
        return self.format.refuse(value.value if isinstance(value, Doomed) else value, error)

    def rebuild(self) -> None:
        """An engine that raised inside a step hangs in the next one: replace it."""
        self.close()
        self._build()

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        if self.llm is not None:  # one that did not start again is not there
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = self.format = None  # type: ignore[assignment]
        gc.collect()
        cleanup_dist_env_and_memory()
