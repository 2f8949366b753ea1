"""A prompt with its images and videos, as a transformers processor takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from adaptvis_vllm.reference.literals import Literals

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
# Frames [T, H, W, 3] uint8, and what vLLM says of them: fps, duration, total_num_frames,
# frames_indices (which of those the frames are), do_sample_frames (whether to take fewer).
Video: TypeAlias = tuple[np.ndarray, Mapping[str, Any]]


def prepare(
    processor: Any,
    prompt: Prompt,
    images: Sequence[Image.Image],
    videos: Sequence[Video],
    literals: Literals | None = None,
    divided: bool = False,
) -> Any:
    """The processor's `BatchFeature` of one prompt, text or chat messages.

    literals: puts stand-ins into `input_ids` where a placeholder is typed text; None: there is
    no such text. divided: see `Literals.mark`; such a prompt is none for the model.
    """
    arguments: dict[str, Any] = {}
    if not isinstance(prompt, str):
        prompt = chat_text(processor, prompt)
        arguments["add_special_tokens"] = False  # the template writes the leading ones itself
    if literals is not None:
        prompt = literals.mark(prompt, {"image": len(images), "video": len(videos)}, divided)
    if images:
        arguments["images"] = list(images)
    if videos:
        arguments["videos"] = [frames for frames, _ in videos]
        about = [dict(metadata) for _, metadata in videos]
        sample = [metadata.pop("do_sample_frames", False) for metadata in about]
        # As vLLM: only processors that take fewer frames by themselves are told so.
        arguments["do_sample_frames"] = processor.video_processor.do_sample_frames and any(sample)
        arguments["video_metadata"] = about
    return processor(text=prompt, return_tensors="pt", **arguments)


def chat_text(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of chat messages, by the processor's template.

    As vLLM does, a template that goes through the parts of a message gets parts, of a text
    too, and any other the texts alone. ValueError where that has no place for a picture.
    """

    def render(contents: Sequence[Any]) -> str:
        chat = [{**m, "content": c} for m, c in zip(messages, contents, strict=True)]
        return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    parts = [_parts(message.get("content")) for message in messages]
    if _takes_parts(processor):
        return render(parts)
    if any(part["type"] != "text" for content in parts for part in content):
        raise ValueError("the chat template has no place for pictures and videos: ask with prompt")
    return render(["\n".join(part["text"] for part in content) for content in parts])


def _parts(content: Any) -> list[dict[str, Any]]:
    if content is None:
        return []
    given = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": p} if isinstance(p, str) else dict(p) for p in given]


def _takes_parts(processor: Any) -> bool:
    """Whether the template goes through parts; any other writes them out as Python does."""
    chat = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    try:
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except Exception:  # such as text + list
        return False
    return "'type'" not in text
