"""Pictures and videos of rows: from paths, URLs, `data:` URIs or bytes."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

DOWNLOAD_SECONDS = 20
DOWNLOAD_BYTES = 100 * 2**20
FRAMES_MAX = 32  # vLLM drops what a list has more, unless it is told otherwise


def load_image(source: Any, folder: Path, field: str) -> Image.Image:
    """An RGB picture from a path, URL, data URI, a file's bytes or a picture of any mode.

    ValueError names the field.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    source = _plain(source)
    if not isinstance(source, str | bytes) or not source:
        raise ValueError(f"{field} must be a path, URL, data URI or bytes, not {source!r:.60}")
    try:
        with _said(source, field, "image"):
            return Image.open(_place(source, folder, field)).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(f"{field}: {error}") from None


def load_video(source: Any, folder: Path, field: str) -> str:
    """A video as a `data:` URI that vLLM reads: a file's bytes, or frames one after the other.

    source: a video file, from a path, URL, `data:` URI or its bytes; or a list of its frames,
        whatever `load_image` takes, of one size, at most 32, one a second.
    ValueError names the field.
    """
    if isinstance(source, list):
        return _frames(source, folder, field)
    source = _plain(source)
    if not isinstance(source, str | bytes) or source == "":
        raise ValueError(
            f"{field} must be a path, URL, data URI, bytes or a list of frames, not {source!r:.60}"
        )
    with _said(source, field, "video"):
        place = _place(source, folder, field)
        data = place.read_bytes() if isinstance(place, Path) else place.getvalue()
    if not _is_video(data):
        raise ValueError(f"{field}: {source!r:.60} is no readable video")
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def decode_video(
    uri: str, processor: str | None, options: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Frames [T, H, W, 3] uint8 and their metadata, as vLLM's chat gets them.

    uri: what `load_video` returns. processor: class name of the model's video processor, which
    decides what frames are taken. options: the engine's `media_io_kwargs`. ValueError for a
    video that turns out to be damaged.
    """
    from vllm.multimodal.media import MediaConnector

    connector = MediaConnector(media_io_kwargs=dict(options or {}))
    try:
        frames, metadata = connector.fetch_video(uri, video_processor=processor).media
    except Exception as error:  # decoders raise what they like: the video is at fault
        raise ValueError(f"video cannot be decoded: {error!s:.200}") from error
    return frames, metadata


def _frames(sources: list[Any], folder: Path, field: str) -> str:
    if not 0 < len(sources) <= FRAMES_MAX:
        raise ValueError(f"{field} must have 1 to {FRAMES_MAX} frames, not {len(sources)}")
    frames = [load_image(source, folder, field) for source in sources]
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"{field}: frames must have one size, not {sorted(sizes)!s:.60}")
    return "data:video/jpeg;base64," + ",".join(_base64(frame) for frame in frames)


def _base64(frame: Image.Image) -> str:
    """Without loss; vLLM calls a list of frames JPEG and reads any format."""
    out = io.BytesIO()
    frame.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def _plain(source: Any) -> Any:
    """Of a path its text; of how Hugging Face data sets store files in Parquet, what is there."""
    if isinstance(source, Path):
        return str(source)
    if isinstance(source, Mapping):
        return source.get("bytes") or source.get("path")
    return source


def _place(source: str | bytes, folder: Path, field: str) -> Path | io.BytesIO:
    """Where the file can be read."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.startswith("data:"):
        head, _, body = source.partition(",")
        if not head.endswith(";base64"):
            raise binascii.Error("only base64 data URIs are read")
        return io.BytesIO(base64.b64decode(body, validate=True))
    if source.startswith(("http://", "https://")):
        return io.BytesIO(download(source, field))
    if "://" in source:
        raise ValueError(f"{field}: {source!r:.60} is no http(s) URL")
    return folder / source


@contextmanager
def _said(source: str | bytes, field: str, kind: str) -> Iterator[None]:
    """A file that is missing or broken is a ValueError that names the field."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{field}: no such file {source!r:.200}") from None
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError(f"{field}: {source!r:.60} is no readable {kind}: {error!s:.200}") from None


def _is_video(data: bytes) -> bool:
    """Whether vLLM's decoder opens it and finds a frame; a picture counts none."""
    import cv2

    video = cv2.VideoCapture(io.BytesIO(data), cv2.CAP_FFMPEG, [])  # type: ignore[call-overload]
    announced = video.get(cv2.CAP_PROP_FRAME_COUNT) if video.isOpened() else 0
    return announced > 0 and any(video.grab() for _ in range(FRAMES_MAX))


def download(url: str, field: str, tries: int = 3) -> bytes:
    """What an http(s) URL holds; ValueError names the field. Passing failures are tried again."""
    request = urllib.request.Request(url, headers={"User-Agent": "adaptvis-vllm"})
    for left in reversed(range(tries)):
        try:
            with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as answer:
                body = answer.read(DOWNLOAD_BYTES + 1)
            if len(body) > DOWNLOAD_BYTES:
                raise ValueError(f"{field}: {url:.200} is larger than {DOWNLOAD_BYTES} bytes")
            return body
        except (OSError, http.client.HTTPException) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else 500
            if not left or (status < 500 and status not in (408, 429)):
                raise ValueError(f"{field}: {url:.200} cannot be loaded: {error!s:.200}") from None
            time.sleep(tries - left)
    raise AssertionError
