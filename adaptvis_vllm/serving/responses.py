"""The report in OpenAI responses: top-level field `adaptvis`.

Of a completion with several prompts it is a list in their order. In a stream it is in the
chunk that carries the finish reason.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from adaptvis_vllm.steering.report import CARRIER


class _Tee:
    """Passes results on and remembers the last report of each prompt."""

    def __init__(self, results: AsyncIterator[Any]) -> None:
        self.results = results
        self.reports: dict[int, dict[str, Any]] = {}

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self.results:
            prompt, result = item if isinstance(item, tuple) else (0, item)
            if result.adaptvis is not None:
                self.reports[prompt] = result.adaptvis
            yield item


def _put(response: Any, reports: list[dict[str, Any] | None]) -> None:
    if any(reports):
        setattr(response, CARRIER, reports[0] if len(reports) == 1 else reports)
        rest = {k: v for k, v in (response.kv_transfer_params or {}).items() if k != CARRIER}
        response.kv_transfer_params = rest or None


async def full_chat(
    original: Callable[..., Any],
    self: Any,
    request: Any,
    result_generator: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `OpenAIServingChat.chat_completion_full_generator`."""
    tee = _Tee(result_generator)
    response = await original(self, request, aiter(tee), *args, **kwargs)
    if hasattr(response, "choices"):
        _put(response, [tee.reports.get(0)])
    return response


def full_completion(
    original: Callable[..., Any], self: Any, final_res_batch: list[Any], *args: Any, **kwargs: Any
) -> Any:
    """Wraps `OpenAIServingCompletion.request_output_to_completion_response`."""
    response = original(self, final_res_batch, *args, **kwargs)
    _put(response, [result.adaptvis for result in final_res_batch])
    return response


def _with_report(event: str, tee: _Tee, choices_per_prompt: int) -> str:
    """One server-sent event, with the report if it ends a choice."""
    if not tee.reports or not event.startswith("data: {"):
        return event
    chunk = json.loads(event[len("data: ") :])
    for choice in chunk.get("choices", ()):
        report = tee.reports.get(choice["index"] // choices_per_prompt)
        if choice.get("finish_reason") is not None and report is not None:
            chunk[CARRIER] = report
            return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    return event


async def stream_chat(
    original: Callable[..., Any],
    self: Any,
    request: Any,
    result_generator: Any,
    *args: Any,
    **kwargs: Any,
) -> AsyncIterator[str]:
    """Wraps `OpenAIServingChat.chat_completion_stream_generator`."""
    tee = _Tee(result_generator)
    async for event in original(self, request, aiter(tee), *args, **kwargs):
        yield _with_report(event, tee, request.n or 1)


async def stream_completion(
    original: Callable[..., Any],
    self: Any,
    request: Any,
    engine_inputs: Any,
    result_generator: Any,
    *args: Any,
    **kwargs: Any,
) -> AsyncIterator[str]:
    """Wraps `OpenAIServingCompletion.completion_stream_generator`."""
    tee = _Tee(result_generator)
    async for event in original(self, request, engine_inputs, aiter(tee), *args, **kwargs):
        yield _with_report(event, tee, request.n or 1)
