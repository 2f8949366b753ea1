"""Rows of `adaptvis generate` for an engine: how they become requests, and outputs become rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from adaptvis_vllm.files.media import decode_video
from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.offline.schema import TEXTS, Row, output_row, parse_row, row_id_of, sentence
from adaptvis_vllm.offline.stream import Answer
from adaptvis_vllm.steering.defaults import server_defaults
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.report import adaptive_branch
from adaptvis_vllm.steering.words import BadParameter


class Format(Protocol):
    """What an engine is asked in, and answers in; `RowFormat`, or a batch's OpenAI one."""

    def prepare(self, value: Any) -> Any: ...
    def enqueue(self, prepared: Any) -> str: ...
    def answer(self, prepared: Any, output: Any) -> Answer: ...
    def refuse(self, value: Any, error: Exception) -> Answer: ...


class RowFormat:
    """llm: vLLM `LLM` (this package's plugin loaded). folder: what image paths are relative to.

    logprobs: how many to report per token, None for none. fields: for rows that lack them. maps:
    where rows' attention maps go; True where the caller takes them from the outputs; without either
    a row that asks for maps is refused.
    """

    def __init__(
        self,
        llm: Any,
        folder: Path,
        logprobs: int | None = None,
        fields: Mapping[str, Any] | None = None,
        maps: MapFolder | bool | None = None,
    ) -> None:
        config = llm.llm_engine.vllm_config
        self.llm = llm
        self.folder = folder
        self.logprobs = logprobs
        self.fields = fields or {}
        self.maps = maps
        self.model_config = config.model_config
        self.defaults = server_defaults(config)
        self.media = media_options(config.model_config)

    def prepare(self, value: Any) -> Row:
        if isinstance(value, dict):
            value = with_defaults(value, self.fields)
        row = parse_row(value, self.folder, self.defaults, self.media.get("image"))
        check_maps(row.steering or self.defaults, self.maps)
        return row

    def enqueue(self, prepared: Row) -> str:
        """Queue one row; returns the id that its output will carry."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=prepared.max_tokens,
            temperature=prepared.temperature,
            seed=prepared.seed,
            logprobs=self.logprobs,
            extra_args=prepared.steering.extra_args() if prepared.steering else None,
        )
        if prepared.messages is not None:
            (internal,) = self.llm.enqueue_chat([prepared.messages], params, use_tqdm=False)
        else:
            videos = [self.decode(uri) for uri in prepared.videos]
            media = {"image": prepared.images, "video": videos}
            media = {modality: items for modality, items in media.items() if items}
            prompt: dict[str, Any] = {"prompt": prepared.prompt}
            prompt |= {"multi_modal_data": media} if media else {}
            (internal,) = self.llm.enqueue([prompt], params, use_tqdm=False)
        # vLLM returns "NUMBER-RANDOM" here and calls the output by NUMBER.
        return internal.partition("-")[0]

    def row(self, row_id: Any, output: Any) -> dict[str, Any]:
        """The output row of a finished vLLM `RequestOutput`; its maps are written."""
        if output.adaptvis_maps is not None and isinstance(self.maps, MapFolder):
            self.maps.write(row_id, output.adaptvis_maps)
        return output_row(row_id, output, logprobs=self.logprobs is not None)

    def answer(self, prepared: Row, output: Any) -> Answer:
        row = self.row(prepared.id, output)
        steering = prepared.steering or self.defaults
        return Answer(row, len(row["token_ids"]), adaptive_branch(row["adaptvis"], steering))

    def refuse(self, value: Any, error: Exception) -> Answer:
        reason = sentence(error)
        return Answer(output_row(row_id_of(value), error=reason), error=reason)

    def decode(self, uri: str) -> tuple[Any, dict[str, Any]]:
        """A video as the model's processor is given it: see `decode_video`."""
        from vllm.transformers_utils.processor import get_video_processor_cls_name

        return decode_video(uri, get_video_processor_cls_name(self.model_config), self.media)


def with_defaults(value: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The row, completed; a default question only where the row asks nothing."""
    filled = {k: v for k, v in defaults.items() if value.get(k) is None}
    if any(value.get(name) is not None for name in TEXTS):
        filled.pop("question", None)
    return value | filled


def media_options(model_config: Any) -> dict[str, Any]:
    """An engine's `media_io_kwargs`, by modality."""
    about = model_config.multimodal_config
    return dict(about.media_io_kwargs or {}) if about else {}


def check_maps(steering: SteeringParams | None, maps: MapFolder | bool | None) -> None:
    """BadParameter for maps that would be lost."""
    if steering is not None and steering.maps is not None and not maps:
        raise BadParameter("adaptvis maps must be left out here, or --maps FOLDER given", "maps")


def given_up(output: Any) -> str | None:
    """Why a finished vLLM `RequestOutput` is no answer, however empty; None if it is one."""
    if any(answer.finish_reason == "error" for answer in output.outputs):
        return "the engine took the request and then gave it up, with finish_reason 'error'"
    return None
