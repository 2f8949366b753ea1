"""Answer rows with an in-process vLLM engine, its batch kept full, in input order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adaptvis_vllm.files.media import decode_video
from adaptvis_vllm.offline.schema import Row, output_row, parse_row, row_id_of
from adaptvis_vllm.steering.defaults import server_defaults


class RowRunner:
    """Feeds rows to an `LLM` as it has room and yields output rows in input order.

    llm: vLLM `LLM` (this package's plugin loaded). folder: what image paths are relative
    to. logprobs: how many to report per token, None for none. Memory is bounded by a window
    of twice the engine's `max_num_seqs`, whatever the input's length.
    """

    def __init__(self, llm: Any, folder: Path, logprobs: int | None = None) -> None:
        self.llm = llm
        self.folder = folder
        self.logprobs = logprobs
        self.defaults = server_defaults(llm.llm_engine.vllm_config)
        self.media = media_options(llm.llm_engine.vllm_config.model_config)
        self.window = 2 * llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def run(self, values: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """values: decoded lines (`lines.read_lines`). A bad row becomes an error row."""
        for row_id, result in self.outputs(values):
            if isinstance(result, str):
                yield output_row(row_id, error=result)
            else:
                yield output_row(row_id, result, logprobs=self.logprobs is not None)

    def outputs(self, values: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """The same as (row id, finished vLLM `RequestOutput`, or why there is none)."""
        source = iter(values)
        done: dict[int, tuple[Any, Any]] = {}
        running: dict[str, tuple[int, Any]] = {}
        taken = written = 0
        more = True
        while more or running or done:
            while more and taken - written < self.window:
                value = next(source, self)
                if value is self:
                    more = False
                    break
                row_id = row_id_of(value)
                try:
                    row = parse_row(value, self.folder, self.defaults, self.media.get("image"))
                    running[self.enqueue(row)] = (taken, row_id)
                except Exception as error:  # nothing is queued yet: the row alone is at fault
                    done[taken] = row_id, sentence(error)
                taken += 1
            if running:
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        number, row_id = running.pop(output.request_id)
                        done[number] = row_id, given_up(output) or output
            while written in done:
                yield done.pop(written)
                written += 1

    def enqueue(self, row: Row) -> str:
        """Queue one row; returns the id that its output will carry."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=row.max_tokens,
            temperature=row.temperature,
            seed=row.seed,
            logprobs=self.logprobs,
            extra_args=row.steering.extra_args() if row.steering else None,
        )
        if row.messages is not None:
            (internal,) = self.llm.enqueue_chat([row.messages], params, use_tqdm=False)
        else:
            media = {"image": row.images, "video": [self._decode(uri) for uri in row.videos]}
            media = {modality: items for modality, items in media.items() if items}
            prompt: dict[str, Any] = {"prompt": row.prompt}
            prompt |= {"multi_modal_data": media} if media else {}
            (internal,) = self.llm.enqueue([prompt], params, use_tqdm=False)
        # vLLM returns "NUMBER-RANDOM" here and calls the output by NUMBER.
        return internal.partition("-")[0]

    def _decode(self, uri: str) -> tuple[Any, dict[str, Any]]:
        from vllm.transformers_utils.processor import get_video_processor_cls_name

        model = self.llm.llm_engine.vllm_config.model_config
        return decode_video(uri, get_video_processor_cls_name(model), self.media)


def media_options(model_config: Any) -> dict[str, Any]:
    """An engine's `media_io_kwargs`, by modality."""
    about = model_config.multimodal_config
    return dict(about.media_io_kwargs or {}) if about else {}


def cache_bytes(given: int | None, share: float = 0.25) -> int | None:
    """`kv_cache_memory_bytes` of an engine: as given; on a CPU else a share of the free memory.

    At most 16 GiB; vLLM itself wants nearly all of a CPU machine's. None leaves it to vLLM: on
    a GPU, or where VLLM_CPU_KVCACHE_SPACE says it.
    """
    import psutil
    from vllm.platforms import current_platform

    if given is not None or "VLLM_CPU_KVCACHE_SPACE" in os.environ or not current_platform.is_cpu():
        return given
    return min(int(psutil.virtual_memory().available * share), 16 * 2**30)


def given_up(output: Any) -> str | None:
    """Why a finished vLLM `RequestOutput` is no answer, however empty; None if it is one."""
    if any(answer.finish_reason == "error" for answer in output.outputs):
        return "the engine took the request and then gave it up, with finish_reason 'error'"
    return None


def sentence(error: Exception) -> str:
    """An error row's reason."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
