"""The OpenAI batch format, as `vllm run-batch` reads and writes it: chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.serve import create_error_response
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError
from vllm.multimodal.media.connector import merge_media_io_kwargs
from vllm.utils import random_uuid

from adaptvis_vllm.engine.admission import check_fields
from adaptvis_vllm.files.lines import check_unicode
from adaptvis_vllm.files.media import fetch_image
from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.offline.format import check_maps, media_options
from adaptvis_vllm.offline.schema import row_id_of
from adaptvis_vllm.offline.stream import Answer, EngineFailed
from adaptvis_vllm.steering.defaults import server_defaults
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.report import CARRIER, adaptive_branch

CHAT = "/v1/chat/completions"


class Unsupported(ValueError):
    """What run-batch refuses by itself: the row's error is a text, not an object."""


@dataclass(frozen=True)
class Chat:
    """One checked request. messages: its own, with the pictures loaded."""

    custom_id: str
    request: ChatCompletionRequest
    messages: list[Any]
    steering: SteeringParams | None


class OpenAIFormat:
    """llm: the engine that answers. maps: as of `RowFormat`."""

    def __init__(self, llm: Any, maps: MapFolder | None = None) -> None:
        config = llm.llm_engine.vllm_config
        self.llm, self.maps = llm, maps
        self.model = config.model_config
        names = self.model.served_model_name
        self.names = [names] if isinstance(names, str) else list(names)
        self.media = media_options(self.model)
        self.defaults = server_defaults(config)
        self.sampling = self.model.get_diff_sampling_param()

    def prepare(self, value: Any) -> Chat:
        if isinstance(value, ValueError):
            raise value
        if not isinstance(value, Mapping):
            raise ValueError(f"a row must be a JSON object, not {type(value).__name__}")
        for name in ("custom_id", "method", "url"):
            if not isinstance(value.get(name), str):
                raise ValueError(f"{name} must be a text, not {value.get(name)!r:.60}")
        if value["method"] != "POST":
            raise ValueError(f"method must be POST, not {value['method']!r:.60}")
        if value["url"] != CHAT:
            raise Unsupported(f"URL {value['url']} was used. Supported endpoints: {CHAT}")
        if not isinstance(value.get("body"), Mapping):
            raise ValueError(f"body must be an object, not {value.get('body')!r:.60}")
        check_unicode(value["body"], "body")
        request = ChatCompletionRequest.model_validate(dict(value["body"]))
        if request.model and request.model not in self.names:
            raise VLLMNotFoundError(f"The model `{request.model}` does not exist.")
        if request.stream:
            raise Unsupported("Request must not be sent in stream mode")
        for name, wrong in (
            ("use_beam_search", request.use_beam_search),
            ("tools", request.tools and request.tool_choice != "none"),
            ("echo", request.echo),
        ):
            if wrong:
                raise VLLMValidationError(f"{name} is not supported in a batch", parameter=name)
        steering = SteeringParams.from_flat(request.vllm_xargs, defaults=self.defaults)
        check_maps(steering, self.maps)
        messages = [self._with_pictures(m, request) for m in request.messages]
        return Chat(value["custom_id"], request, messages, steering)

    def _with_pictures(self, message: Any, request: ChatCompletionRequest) -> Any:
        """Pictures are loaded here, in a thread, as vLLM loads them."""
        content = message.get("content") if isinstance(message, Mapping) else None
        if content is None or isinstance(content, str):
            return message
        parts = []
        for part in content:
            url = part.get("image_url") if isinstance(part, Mapping) else None
            url = url.get("url") if isinstance(url, Mapping) else url
            if url:
                picture = fetch_image(
                    url,
                    media_io_kwargs=merge_media_io_kwargs(self.media, request.media_io_kwargs),
                    allowed_local_media_path=self.model.allowed_local_media_path,
                    allowed_media_domains=self.model.allowed_media_domains,
                )
                part = {k: v for k, v in part.items() if k not in ("type", "image_url")}
                part |= {"type": "image_pil", "image_pil": picture}
            parts.append(part)
        return {**message, "content": parts}

    def enqueue(self, prepared: Chat) -> str:
        request = prepared.request
        limits = (request.max_completion_tokens, vars(request)["max_tokens"])  # one is deprecated
        limit = next((given for given in limits if given is not None), None)
        allowed = self.sampling.get("max_tokens")
        if allowed is not None:
            limit = allowed if limit is None else min(limit, allowed)
        # None: as many as the model's length allows.
        check_fields(request)
        params = request.to_sampling_params(limit, self.sampling)  # type: ignore[arg-type]
        params.skip_clone = False
        chat = request.build_chat_params(None, "auto")
        kwargs = dict(chat.chat_template_kwargs)
        tokens: dict[str, Any] = {"add_special_tokens": request.add_special_tokens}
        if request.truncate_prompt_tokens is not None:
            tokens["truncate_prompt_tokens"] = request.truncate_prompt_tokens
        (internal,) = self.llm.enqueue_chat(
            [prepared.messages],
            params,
            use_tqdm=False,
            chat_template=chat.chat_template,
            add_generation_prompt=kwargs.pop("add_generation_prompt", True),
            continue_final_message=kwargs.pop("continue_final_message", False),
            chat_template_kwargs=kwargs,
            tokenization_kwargs=tokens,
            mm_processor_kwargs=request.mm_processor_kwargs,
        )
        return internal.partition("-")[0]

    def answer(self, prepared: Chat, output: Any) -> Answer:
        generated = sum(len(choice.token_ids) for choice in output.outputs)
        prompt = len(output.prompt_token_ids)
        body = ChatCompletionResponse.model_validate(
            {
                "id": f"chatcmpl-{random_uuid()}",
                "model": prepared.request.model or self.names[0],
                "choices": [self._choice(c, prepared.request) for c in output.outputs],
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": generated,
                    "total_tokens": prompt + generated,
                },
                "prompt_token_ids": output.prompt_token_ids
                if prepared.request.return_token_ids
                else None,
                "prompt_logprobs": output.prompt_logprobs,
            }
        ).model_dump(mode="json")
        report = output.adaptvis
        if report is not None:
            body[CARRIER] = report
        if output.adaptvis_maps is not None:
            assert self.maps is not None
            self.maps.write(prepared.custom_id, output.adaptvis_maps)
        row = self._row(prepared.custom_id, 200, body, None)
        return Answer(row, generated, adaptive_branch(report, prepared.steering))

    def _choice(self, choice: Any, request: ChatCompletionRequest) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text},
            "logprobs": {"content": self._logprobs(choice, request.top_logprobs or 0)}
            if request.logprobs
            else None,
            "finish_reason": choice.finish_reason or "stop",
            "stop_reason": choice.stop_reason,
            "token_ids": list(choice.token_ids) if request.return_token_ids else None,
        }

    def _logprobs(self, choice: Any, top: int) -> list[dict[str, Any]]:
        def entry(token: int, value: Any) -> dict[str, Any]:
            text = value.decoded_token
            text = self.llm.get_tokenizer().decode([token]) if text is None else text
            raw = list(text.encode("utf-8", errors="replace"))
            return {"token": text, "logprob": max(value.logprob, -9999.0), "bytes": raw}

        return [
            entry(token, step[token])
            | {"top_logprobs": [entry(t, v) for t, v in list(step.items())[:top]]}
            for token, step in zip(choice.token_ids, choice.logprobs, strict=True)
        ]

    def refuse(self, value: Any, error: Exception) -> Answer:
        custom_id = row_id_of(value, "custom_id")
        if isinstance(error, Unsupported):
            return Answer(self._row(custom_id, 400, None, str(error)), error=str(error))
        if isinstance(error, EngineFailed):
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            answer = create_error_response(str(error), "InternalServerError", status)
        else:
            # vLLM calls a plain ValueError a server's fault; here the row is at fault.
            known = type(error).__module__.startswith(("vllm.", "adaptvis_vllm."))
            answer = create_error_response(error if known else str(error))
        row = self._row(custom_id, int(answer.error.code), None, answer.model_dump(mode="json"))
        return Answer(row, error=answer.error.message)

    def _row(self, custom_id: Any, status: int, body: Any, error: Any) -> dict[str, Any]:
        name = f"vllm-batch-{random_uuid()}"
        return {
            "id": f"vllm-{random_uuid()}",
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": name, "body": body},
            "error": error,
        }
