"""The report in OpenAI responses: top-level field `adaptvis`.

Of a completion with several prompts it is a list in their order. In a stream it is in the
chunk that carries the finish reason.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from adaptvis_vllm.engine import metrics
from adaptvis_vllm.engine.texts import with_texts
from adaptvis_vllm.steering.report import CARRIER


def output_report(self: Any) -> dict[str, Any] | None:
    """`RequestOutput.adaptvis`: the report of a finished output, else None."""
    return (self.kv_transfer_params or {}).get(CARRIER)


def deliver_report(
    original: Callable[..., Any],
    self: Any,
    new_token_ids: Any,
    pooling_output: Any,
    finish_reason: Any,
    stop_reason: Any,
    kv_transfer_params: dict[str, Any] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `RequestState.make_request_output`.

    The report comes with the first token and leaves with the last output, counted.
    """
    if kv_transfer_params and CARRIER in kv_transfer_params:
        self.adaptvis = kv_transfer_params[CARRIER]
        rest = {k: v for k, v in kv_transfer_params.items() if k != CARRIER}
        kv_transfer_params = rest or None
    arrived = getattr(self, "adaptvis", None)
    if arrived is not None and finish_reason is not None:
        report = {k: v for k, v in arrived.items() if k != "branch"}
        if report.get("candidates"):
            report["candidates"] = with_texts(self, report["candidates"])
        metrics.count_finished(report, arrived["branch"])
        kv_transfer_params = {**(kv_transfer_params or {}), CARRIER: report}
    return original(
        self,
        new_token_ids,
        pooling_output,
        finish_reason,
        stop_reason,
        kv_transfer_params,
        *args,
        **kwargs,
    )


def keep_report(
    original: Callable[..., Any], self: Any, next_output: Any, *args: Any, **kwargs: Any
) -> None:
    """Wraps `RequestOutput.add`, which merges outputs and takes the later one's parameters.

    With n > 1 a choice may end, and report, before another one goes on.
    """
    report = output_report(self)
    original(self, next_output, *args, **kwargs)
    if report is not None and output_report(self) is None:
        self.kv_transfer_params = {**(self.kv_transfer_params or {}), CARRIER: report}


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
