"""The report in OpenAI responses, top-level field `adaptvis`, and attention maps, `adaptvis_maps`.

Of a completion with several prompts each is a list in their order. In a stream they are in the
chunk that carries the finish reason. Maps are base64 text of what `Maps.to_bytes` makes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from adaptvis_vllm.engine.mapping import CARRIER as MAPS
from adaptvis_vllm.steering.report import CARRIER


def _found(result: Any) -> dict[str, Any]:
    """Our fields of a response, from one vLLM `RequestOutput`."""
    found = {}
    if result.adaptvis is not None:
        found[CARRIER] = result.adaptvis
    if result.adaptvis_maps is not None:
        found[MAPS] = base64.b64encode(result.adaptvis_maps.to_bytes()).decode()
    return found


class _Tee:
    """Passes results on and remembers our fields of each prompt."""

    def __init__(self, results: AsyncIterator[Any]) -> None:
        self.results = results
        self.found: dict[int, dict[str, Any]] = {}

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self.results:
            prompt, result = item if isinstance(item, tuple) else (0, item)
            self.found.setdefault(prompt, {}).update(_found(result))
            yield item


def _put(response: Any, found: list[dict[str, Any]]) -> None:
    for name in (CARRIER, MAPS):
        values = [fields.get(name) for fields in found]
        if any(values):
            setattr(response, name, values[0] if len(values) == 1 else values)
    if response.kv_transfer_params:
        rest = {k: v for k, v in response.kv_transfer_params.items() if k != CARRIER}
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
        _put(response, [tee.found.get(0, {})])
    return response


def full_completion(
    original: Callable[..., Any], self: Any, final_res_batch: list[Any], *args: Any, **kwargs: Any
) -> Any:
    """Wraps `OpenAIServingCompletion.request_output_to_completion_response`."""
    response = original(self, final_res_batch, *args, **kwargs)
    _put(response, [_found(result) for result in final_res_batch])
    return response


def _with_report(event: str, tee: _Tee, choices_per_prompt: int) -> str:
    """One server-sent event, with our fields if it ends a choice."""
    if not any(tee.found.values()) or not event.startswith("data: {"):
        return event
    chunk = json.loads(event[len("data: ") :])
    for choice in chunk.get("choices", ()):
        found = tee.found.get(choice["index"] // choices_per_prompt)
        if choice.get("finish_reason") is not None and found:
            chunk |= found
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
