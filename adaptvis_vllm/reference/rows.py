"""The rows of `adaptvis generate`, answered by the transformers reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptvis_vllm.files.media import decode_video, pixels
from adaptvis_vllm.maps.folder import MapFolder
from adaptvis_vllm.offline.format import check_maps
from adaptvis_vllm.offline.schema import answered_row, output_row, parse_row, row_id_of, sentence
from adaptvis_vllm.reference.model import ReferenceModel
from adaptvis_vllm.steering.params import SteeringParams

# Parts of messages that are text for vLLM, and where they have it.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text"}
_TEXTS |= {"refusal": "refusal", "thinking": "thinking"}


def run(
    model: ReferenceModel,
    values: Iterable[Any],
    folder: Path,
    logprobs: int | None = None,
    defaults: SteeringParams | None = None,
    maps: MapFolder | None = None,
) -> Iterator[dict[str, Any]]:
    """Output rows in input order; greedy only, so a row with a temperature is an error row.

    defaults: for what rows leave out. maps: where their attention maps go; without it a row that
    asks for maps is an error row.
    """
    processor = type(getattr(model.processor, "video_processor", None)).__name__
    for value in values:
        row_id = row_id_of(value)
        try:
            row = parse_row(value, folder, defaults)
            steering = row.steering or defaults
            check_maps(steering, maps)
            if row.temperature:
                raise ValueError(
                    f"temperature is {row.temperature}, but the reference is greedy: only 0"
                )
            prompt: Any = row.prompt
            images, videos = [pixels(picture) for picture in row.images], row.videos
            if row.messages is not None:
                prompt, images, videos = _for_template(row.messages)
            out = model.generate(
                prompt,
                images,
                steering,
                videos=[decode_video(uri, processor) for uri in videos],
                max_tokens=row.max_tokens,
                logprobs=logprobs or 0,
            )
            if maps is not None and out.maps is not None:
                maps.write(row_id, out.maps)
        except Exception as error:  # the row alone is at fault, whatever transformers raises
            yield output_row(row_id, error=sentence(error))
            continue
        table = None
        if logprobs is not None:
            table = [[list(pair) for pair in step] for step in out.top_logprobs]
        yield answered_row(row_id, out, out.report.as_dict(), table)


def _for_template(messages: list[dict[str, Any]]) -> tuple[Any, list[Any], list[str]]:
    """Chat messages as transformers' templates take them; their images and videos in order."""
    images: list[Any] = []
    videos: list[str] = []

    def short(part: Any) -> dict[str, Any] | None:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image_pil":
            images.append(pixels(part["image_pil"]))
            return {"type": "image"}
        if kind == "video_url":
            videos.append(part["video_url"]["url"])
            return {"type": "video"}
        if kind not in _TEXTS:
            raise ValueError(f"messages: {part!r:.60} is no text, image or video")
        text = part.get(_TEXTS[kind])
        return None if text is None else {"type": "text", "text": text}  # as vLLM

    out = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            content = [shown for part in content if (shown := short(part)) is not None]
        out.append({**message, "content": content})
    return out, images, videos
