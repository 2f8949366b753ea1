"""`POST /adaptvis/sweep`: the answers to one question, unsteered and under several alphas."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from copy import copy
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionMessageParam,
    ChatCompletionRequest,
)
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError

from adaptvis_vllm.steering.defaults import max_candidates
from adaptvis_vllm.steering.fields import check_field
from adaptvis_vllm.steering.params import PREFIX
from adaptvis_vllm.steering.report import MODE_OFF

ALPHAS_MAX = 64
# What a request may say about steering besides alphas.
ALLOWED = (f"{PREFIX}layers", f"{PREFIX}span")
# Fields with which the first token is the most probable one, and its text is the answer.
_PLAIN = {
    *("model", "messages", "question", "image", "images", "alphas", "vllm_xargs", "request_id"),
    *("max_tokens", "max_completion_tokens", "temperature", "seed", "user", "stop"),
    *("stop_token_ids", "n", "stream", "use_beam_search", "media_io_kwargs", "mm_processor_kwargs"),
    *("add_generation_prompt", "chat_template", "chat_template_kwargs", "add_special_tokens"),
}


class SweepRequest(ChatCompletionRequest):
    """A chat completion request without steering, and the alphas.

    Either messages, or a question with its image(s): URLs or data: URIs. Greedy unless
    temperature is given. Not with stream, n > 1 or beam search.
    """

    messages: list[ChatCompletionMessageParam] = Field(default_factory=list)
    question: str | None = None
    image: str | None = None
    images: list[str] | None = None
    alphas: list[Annotated[float, Strict()]] = Field(min_length=1, max_length=ALPHAS_MAX)

    @model_validator(mode="before")
    @classmethod
    def no_messages(cls, data: Any) -> Any:
        """null is as good as none; a validator of the base class would fail with it."""
        if isinstance(data, dict) and data.get("messages") is None:
            return {name: value for name, value in data.items() if name != "messages"}
        return data


class Sweep:
    """Asks vLLM's own chat serving, so that everything but steering is as it is there.

    chat: vLLM's `OpenAIServingChat`, None where the model has no chat. vllm_config: the engine's.
    """

    def __init__(self, chat: Any, vllm_config: Any) -> None:
        self.chat = copy(chat)
        if chat is not None:
            self.chat.enable_prompt_tokens_details = True
        # With another mode logprobs are no probabilities of the model's own distribution.
        self.has_confidence = vllm_config.model_config.logprobs_mode == "raw_logprobs"
        self.max_candidates = max_candidates(vllm_config)

    async def run(self, request: SweepRequest) -> tuple[int, dict[str, Any]]:
        """(HTTP status, body). VLLMValidationError names a wrong field.

        The unsteered answer comes first: it leaves the prompt's blocks, the image's among
        them, in the prefix cache for all others. Answers of one token are candidates of one
        request, where the engine has room for them.
        """
        if self.chat is None:
            raise NotImplementedError("The model does not support Chat Completions API")
        plain, *steered = self.requests(request)
        together = self.is_one(request)
        if together:
            xargs: dict[str, Any] = dict(plain.vllm_xargs or {})
            xargs[f"{PREFIX}mode"] = "candidates"
            xargs[f"{PREFIX}candidates"] = list(dict.fromkeys(request.alphas))
            plain, steered = plain.model_copy(update={"vllm_xargs": xargs}), []
        answers = [await self.chat.create_chat_completion(plain)]
        if not isinstance(answers[0], ErrorResponse):
            answers += await asyncio.gather(*map(self.chat.create_chat_completion, steered))
        for answer in answers:
            if isinstance(answer, ErrorResponse):
                return answer.error.code, answer.model_dump()
        if together:
            rows = candidate_rows(request.alphas, answers[0])
        else:
            rows = [
                self.row(alpha, answer)
                for alpha, answer in zip([None, *request.alphas], answers, strict=True)
            ]
        usage = [answer.usage for answer in answers]
        return 200, {
            "id": f"sweep-{request.request_id}",
            "object": "adaptvis.sweep",
            "created": int(time.time()),
            "model": answers[0].model,
            "rows": rows,
            "usage": {
                name: sum(getattr(u, name) or 0 for u in usage)
                for name in ("prompt_tokens", "completion_tokens", "total_tokens")
            },
        }

    def is_one(self, request: SweepRequest) -> bool:
        """Whether candidates of one request are the answers."""
        limit = request.max_completion_tokens or request.max_tokens
        defaults = self.chat.default_sampling_params
        return (
            limit == 1
            and (request.temperature == 0 or "temperature" not in request.model_fields_set)
            and len(set(request.alphas)) <= self.max_candidates
            and request.model_fields_set <= _PLAIN
            and defaults.get("repetition_penalty", 1.0) == 1.0
            and self.chat.parser_cls is None
        )

    def requests(self, request: SweepRequest) -> list[ChatCompletionRequest]:
        """The unsteered request and one for each alpha; all is checked before one is sent."""
        for i, value in enumerate(request.alphas):
            try:
                check_field("alpha", value, "")
            except ValueError as error:
                text = str(error).removeprefix("alpha ")
                raise _wrong(f"alphas[{i}]", text) from None
        for name, wrong in (
            ("stream", request.stream),
            ("n", (request.n or 1) > 1),
            ("use_beam_search", request.use_beam_search),
        ):
            if wrong:
                raise _wrong(name, "is not possible in a sweep")
        xargs = dict(request.vllm_xargs or {})
        for name in xargs:
            if name.lower().startswith(PREFIX.rstrip("_")) and name not in ALLOWED:
                raise _wrong(name, f"does not go with alphas; only {' and '.join(ALLOWED)} do")
        changes: dict[str, Any] = {
            "messages": _messages(request),
            "logprobs": self.has_confidence,
            "top_logprobs": int(self.has_confidence),
        }
        if "temperature" not in request.model_fields_set:
            changes["temperature"] = 0.0
        out: list[ChatCompletionRequest] = []
        for i, alpha in enumerate([None, *request.alphas]):
            own: dict[str, Any] = {f"{PREFIX}mode": "off" if alpha is None else "scaling"}
            if alpha is not None:
                own[f"{PREFIX}alpha"] = alpha
            changes["vllm_xargs"] = {**xargs, **own}
            changes["request_id"] = f"{request.request_id}-{i}"
            out.append(request.model_copy(update=dict(changes)))
        return out

    def row(self, alpha: float | None, answer: Any) -> dict[str, Any]:
        """One line of the table. confidence: the largest probability of the first token."""
        choice = answer.choices[0]
        first = choice.logprobs.content if choice.logprobs else None
        details = answer.usage.prompt_tokens_details
        return {
            "alpha": alpha,
            "text": choice.message.content,
            "confidence": math.exp(first[0].top_logprobs[0].logprob) if first else None,
            "finish_reason": choice.finish_reason,
            "steered": answer.adaptvis["steered"],
            "reason": answer.adaptvis["reason"],
            "prompt_tokens": answer.usage.prompt_tokens,
            "cached_tokens": (details and details.cached_tokens) or 0,
        }


def candidate_rows(alphas: Sequence[float], answer: Any) -> list[dict[str, Any]]:
    """The same lines from the report of one request. What is computed for an alpha is one row, so
    that all of the prompt before it counts as cached."""
    choice, report = answer.choices[0], answer.adaptvis
    details, tokens = answer.usage.prompt_tokens_details, answer.usage.prompt_tokens
    found = {one["alpha"]: one for one in report["candidates"]}
    steered = bool(found)
    rows = [
        {
            "alpha": None,
            "text": choice.message.content,
            "confidence": (report["confidences"] or {}).get("max_prob"),
            "finish_reason": choice.finish_reason,
            "steered": False,
            "reason": MODE_OFF,
            "prompt_tokens": tokens,
            "cached_tokens": (details and details.cached_tokens) or 0,
        }
    ]
    for alpha in alphas:
        row = {**rows[0], "alpha": alpha, "steered": steered, "cached_tokens": tokens - 1}
        row["reason"] = None if steered else report["reason"]
        if steered:
            one = found[alpha]
            row["text"], row["confidence"] = one["token"], one["probability"]
            row["finish_reason"] = "stop" if one["stop"] else "length"
        rows.append(row)
    return rows


def _messages(request: SweepRequest) -> list[Any]:
    if request.messages:
        for name in ("question", "image", "images"):
            if getattr(request, name) is not None:
                raise _wrong(name, "does not go with messages")
        return request.messages
    if request.question is None:
        raise _wrong("messages", "or question is needed")
    if request.image is not None and request.images is not None:
        raise _wrong("image", "does not go with images")
    urls = request.images or ([] if request.image is None else [request.image])
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": request.question}]}]


def _wrong(field: str, text: str) -> VLLMValidationError:
    return VLLMValidationError(f"{field} {text}", parameter=field)
