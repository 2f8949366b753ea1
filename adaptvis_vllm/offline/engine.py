"""The vLLM engine of a batch job, in this process, and the two formats it speaks."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any, Protocol

from adaptvis_vllm.offline.schema import TEXTS, output_row, parse_row, row_id_of
from adaptvis_vllm.offline.stream import Answer, Doomed, EngineFailed
from adaptvis_vllm.steering.report import adaptive_branch


class Format(Protocol):
    """How rows become requests and outputs become rows."""

    def prepare(self, value: Any) -> Any: ...
    def enqueue(self, prepared: Any) -> str: ...
    def answer(self, prepared: Any, output: Any) -> Answer: ...
    def refuse(self, value: Any, error: Exception) -> Answer: ...


class VllmEngine:
    """An `LLM` and its format.

    options: arguments of `LLM`. kind: "rows" or "openai". folder: what paths are relative to.
    logprobs: as in `RowRunner`. defaults: fields for rows that lack them. share: of a CPU
    machine's free memory, for the KV cache if its size is not given.
    """

    def __init__(
        self,
        options: dict[str, Any],
        kind: str = "rows",
        folder: str = ".",
        logprobs: int | None = None,
        defaults: dict[str, Any] | None = None,
        share: float = 0.25,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self.options = options
        self.kind = kind
        self.folder = Path(folder)
        self.logprobs = logprobs
        self.defaults = defaults or {}
        self.share = share
        self._build()

    def _build(self) -> None:
        from adaptvis_vllm.engine.compilation import settle

        options = settle(self.options)
        from vllm import LLM

        from adaptvis_vllm.options import cache_bytes

        size = cache_bytes(options.get("kv_cache_memory_bytes"), self.share)
        self.llm: Any = LLM(**(options | {"kv_cache_memory_bytes": size}))
        scheduler = self.llm.llm_engine.vllm_config.scheduler_config
        # Some wait in the engine, so that a finished row's place is taken in the next step.
        self.window = scheduler.max_num_seqs + max(2, scheduler.max_num_seqs // 4)
        self.format: Format
        if self.kind == "openai":
            from adaptvis_vllm.batch.openai import OpenAIFormat

            self.format = OpenAIFormat(self.llm)
        else:
            self.format = RowFormat(self.llm, self.folder, self.logprobs, self.defaults)

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
        from adaptvis_vllm.offline.runner import given_up

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


class RowFormat:
    """Rows of `adaptvis generate`."""

    def __init__(
        self, llm: Any, folder: Path, logprobs: int | None, defaults: dict[str, Any]
    ) -> None:
        from adaptvis_vllm.offline.runner import RowRunner

        self.runner = RowRunner(llm, folder, logprobs)
        self.defaults = defaults

    def prepare(self, value: Any) -> Any:
        if isinstance(value, dict):
            value = with_defaults(value, self.defaults)
        return parse_row(
            value, self.runner.folder, self.runner.defaults, self.runner.media.get("image")
        )

    def enqueue(self, prepared: Any) -> str:
        return self.runner.enqueue(prepared)

    def answer(self, prepared: Any, output: Any) -> Answer:
        row = output_row(prepared.id, output, logprobs=self.runner.logprobs is not None)
        steering = prepared.steering or self.runner.defaults
        return Answer(row, len(row["token_ids"]), adaptive_branch(row["adaptvis"], steering))

    def refuse(self, value: Any, error: Exception) -> Answer:
        from adaptvis_vllm.offline.runner import sentence

        reason = sentence(error)
        return Answer(output_row(row_id_of(value), error=reason), error=reason)


def with_defaults(value: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The row, completed; a default question only where the row asks nothing."""
    filled = {k: v for k, v in defaults.items() if value.get(k) is None}
    if any(value.get(name) is not None for name in TEXTS):
        filled.pop("question", None)
    return value | filled
