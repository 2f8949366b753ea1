"""The rows of `adaptvis generate`, answered by the transformers reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adaptvis_vllm.media import decode_video
from adaptvis_vllm.reference import ReferenceModel
from adaptvis_vllm.rows import answered_row, output_row, parse_row, row_id_of


def run(
    model: ReferenceModel, values: Iterable[Any], folder: Path, logprobs: int | None = None
) -> Iterator[dict[str, Any]]:
    """Output rows in input order; greedy only, so a row with a temperature is an error row."""
    processor = type(getattr(model.processor, "video_processor", None)).__name__
    for value in values:
        row_id = row_id_of(value)
        try:
            row = parse_row(value, folder)
            if row.temperature:
                raise ValueError(
                    f"temperature is {row.temperature}, but the reference is greedy: only 0"
                )
            prompt: Any = row.prompt
            images, videos = row.images, row.videos
            if row.messages is not None:
                prompt, images, videos = _for_template(row.messages)
            out = model.generate(
                prompt,
                images,
                row.steering,
                videos=[decode_video(uri, processor) for uri in videos],
                max_tokens=row.max_tokens,
                logprobs=logprobs or 0,
            )
        except ValueError as error:
            yield output_row(row_id, error=str(error))
            continue
        table = None
        if logprobs is not None:
            table = [[list(pair) for pair in step] for step in out.top_logprobs]
        yield answered_row(row_id, out, out.report.as_dict(), table)


def _for_template(messages: list[dict[str, Any]]) -> tuple[Any, list[Any], list[str]]:
    """Chat messages as transformers' templates take them; their images and videos in order."""
    images: list[Any] = []
    videos: list[str] = []
    short = {"image_pil": {"type": "image"}, "video_url": {"type": "video"}}
    out = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            images += [p["image_pil"] for p in content if p.get("type") == "image_pil"]
            videos += [p["video_url"]["url"] for p in content if p.get("type") == "video_url"]
            content = [short.get(p.get("type"), p) for p in content]
        out.append({**message, "content": content})
    return out, images, videos
