"""Input and output rows of `adaptvis generate`: one JSON object a line.

Input: `id`; one of `question` (the chat template is applied), `prompt` (raw, with the
model's placeholders), `messages` (OpenAI chat messages); `image` (path, URL, data URI; in
Parquet also the file's bytes) or `images`; `video` (the same, or a list of its frames' images);
optional `adaptvis` (parameters without prefix), `max_tokens` (16), `temperature` (0), `seed`.
Paths are relative to the input file. A field that is null is one that is not there, but for
pictures and videos: a row that has such fields and nothing in any of them is a bad one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from adaptvis_vllm.files.lines import check_unicode, unicode_text
from adaptvis_vllm.files.media import Picture, load_image, load_video
from adaptvis_vllm.steering.params import SteeringParams
from adaptvis_vllm.steering.report import MODE_OFF, Report

FIELDS = (
    "id",
    "image",
    "images",
    "video",
    "question",
    "prompt",
    "messages",
    "adaptvis",
    "max_tokens",
    "temperature",
    "seed",
)
TEXTS = ("question", "prompt", "messages")
MEDIA = ("image_url", "image", "video_url", "video")  # of a part of messages
PICTURES = ("image", "images", "video")
LOGPROB_MIN = -9999.0  # vLLM's server writes it for -inf, which JSON lacks


@dataclass(frozen=True)
class Row:
    """One checked request. prompt: raw text; messages: chat, images loaded; one of them set.

    videos: of a raw prompt, as `media.load_video` returns them; those of messages are inside.
    """

    id: Any
    prompt: str | None
    messages: list[dict[str, Any]] | None
    images: list[Picture]
    videos: list[str]
    steering: SteeringParams | None
    max_tokens: int
    temperature: float
    seed: int | None


def parse_row(
    value: Any,
    folder: Path,
    defaults: SteeringParams | None = None,
    options: Mapping[str, Any] | None = None,
) -> Row:
    """A checked row; ValueError names the field.

    folder: what paths are relative to. defaults: the engine's, for what `adaptvis` leaves out.
    options: for images, of the engine's `media_io_kwargs`.
    In Python, images may be pictures and `adaptvis` a `SteeringParams`.
    """
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, Mapping):
        raise ValueError(f"a row must be a JSON object, not {type(value).__name__}")
    for name in value:
        if name not in FIELDS:
            raise ValueError(f"unknown field {name!r}; known are {', '.join(FIELDS)}")
    media = [name for name in PICTURES if name in value]
    value = {name: field for name, field in value.items() if not is_null(field)}
    given = [name for name in TEXTS if name in value]
    if len(given) != 1:
        raise ValueError(f"exactly one of {', '.join(TEXTS)} is needed, not {given or 'none'}")
    if media and given[0] != "messages" and not any(name in value for name in media):
        raise ValueError(f"{media[0]} is null: a row without pictures has no such field, or []")
    if "image" in value and "images" in value:
        raise ValueError("image and images exclude each other")
    field = "images" if "images" in value else "image"
    sources = no_nulls(field, value.get(field, []))
    sources = sources if isinstance(sources, list) else [sources]
    images = [load_image(source, folder, field, options) for source in sources]
    video = no_nulls("video", value.get("video"))
    videos = [] if video is None else [load_video(video, folder, "video", options)]
    prompt, messages = value.get("prompt"), None
    if given[0] == "prompt":
        _text("prompt", prompt)
    elif given[0] == "question":
        parts: list[Any] = [{"type": "image_pil", "image_pil": image} for image in images]
        parts += [_video_part(uri) for uri in videos]
        text = {"type": "text", "text": _text("question", value["question"])}
        messages = [{"role": "user", "content": [*parts, text]}]
    else:
        if images or videos:
            extra = field if images else "video"
            raise ValueError(f"{extra} does not go with messages; put it into their content")
        messages = _messages(value["messages"], folder, options)
    steering = value.get("adaptvis")
    return Row(
        id=value.get("id"),
        prompt=prompt,
        messages=messages,
        images=images,
        videos=videos,
        steering=steering
        if steering is None or isinstance(steering, SteeringParams)
        else SteeringParams.from_dict(steering, defaults=defaults),
        max_tokens=_whole("max_tokens", value.get("max_tokens", 16), 1),
        temperature=_temperature(value.get("temperature", 0)),
        seed=None if value.get("seed") is None else _whole("seed", value["seed"], 0),
    )


def output_row(
    row_id: Any, output: Any = None, *, error: str | None = None, logprobs: bool = False
) -> dict[str, Any]:
    """The output row of a finished vLLM `RequestOutput`, or of an error."""
    if output is None:
        line = {"id": row_id, "text": None, "token_ids": None, "finish_reason": None}
        return line | {"adaptvis": None, "error": error}
    answer = output.outputs[0]
    table = None
    if logprobs:
        table = [
            [
                [token, max(entry.logprob, LOGPROB_MIN)]
                for token, entry in sorted(step.items(), key=lambda i: i[1].rank)
            ]
            for step in answer.logprobs
        ]
    report = output.adaptvis or Report("off", reason=MODE_OFF).as_dict()
    return answered_row(row_id, answer, report, table)


def answered_row(
    row_id: Any, answer: Any, report: dict[str, Any], logprobs: list[Any] | None
) -> dict[str, Any]:
    """answer: has text, token_ids and finish_reason. logprobs: per token its [id, logprob]s."""
    line = {
        "id": row_id,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "adaptvis": report,
    }
    if logprobs is not None:
        line["logprobs"] = logprobs
    return line | {"error": None}


def row_id_of(value: Any, name: str = "id") -> Any:
    """The id of a row that may be no row at all."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, "row_id", None)


def sentence(error: Exception) -> str:
    """An error row's reason."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def is_null(value: Any) -> bool:
    """Null, as JSON, pandas (NaN) and the library `datasets` (an empty picture) write it."""
    if isinstance(value, Mapping):
        return set(value) <= {"bytes", "path"} and not any(value.values())
    return value is None or (isinstance(value, float) and value != value)


def without_nulls(value: Any) -> Any:
    """Arrow gives every struct all fields; a null field is one that is not there."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def no_nulls(field: str, value: Any) -> Any:
    """The value; ValueError for a list of which an item is null."""
    for number, item in enumerate(value if isinstance(value, list) else ()):
        if is_null(item):
            raise ValueError(f"{field}[{number}] is null")
    return value


def _messages(value: Any, folder: Path, options: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value) or not value:
        raise ValueError("messages must be a list of chat messages")
    messages = []
    for number, message in enumerate(without_nulls(value)):
        _text(f"messages[{number}].role", message.get("role"))
        content = message.get("content")
        field = f"messages[{number}].content"
        if isinstance(content, list):
            content = [_part(p, folder, field, options) for p in no_nulls(field, content)]
        else:
            check_unicode(content, field)
        messages.append({**message, "content": content})
    return messages


def _part(part: Any, folder: Path, field: str, options: Mapping[str, Any] | None) -> Any:
    """With its picture or video loaded, under all names by which vLLM's chat knows one."""
    kind = None
    if isinstance(part, Mapping):
        kind = part.get("type") or next((name for name in MEDIA if name in part), None)
    if kind not in (*MEDIA, "input_image"):
        check_unicode(part, field)
        return part
    source = part.get("image_url" if kind == "input_image" else kind)
    if isinstance(source, Mapping) and "url" in source:
        source = source["url"]
    if is_null(source):
        raise ValueError(f"{field}: {kind} is null")
    if kind.startswith("video"):
        return _video_part(load_video(no_nulls(field, source), folder, field, options))
    return {"type": "image_pil", "image_pil": load_image(source, folder, field, options)}


def _video_part(uri: str) -> dict[str, Any]:
    """Of a chat message, as vLLM takes it."""
    return {"type": "video_url", "video_url": {"url": uri}}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {value!r:.60}")
    return unicode_text(value, name)


def _whole(name: str, value: Any, least: int) -> int:
    """pandas makes 16.0 of 16 where a column has missing values."""
    try:
        number = isinstance(value, Integral | float | Decimal) and not isinstance(value, bool)
        whole = int(value) if number else None
    except (ValueError, OverflowError):  # NaN, infinity
        whole = None
    if whole is None or whole != value or whole < least:
        raise ValueError(f"{name} must be a whole number >= {least}, not {value!r:.60}")
    return whole


def _temperature(value: Any) -> float:
    number = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    if not number or not 0 <= value <= 2:
        raise ValueError(f"temperature must be a number from 0 to 2, not {value!r:.60}")
    return float(value)
