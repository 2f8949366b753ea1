"""Pictures and videos of rows: from paths, URLs, `data:` URIs or bytes.

What a picture's file becomes is vLLM's own code, so it is one picture everywhere: only formats of
vLLM's list are opened (EPS, for which Pillow runs Ghostscript, is none of them), EXIF orientation
is applied, transparent pixels lie on white, of an animation the first frame counts, and the rest
is Pillow's conversion to RGB. An engine's `--media-io-kwargs` holds for its rows.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from adaptvis_vllm.files.urls import is_remote, reason

if TYPE_CHECKING:
    from vllm.multimodal.media import MediaWithBytes

# As vLLM takes it: with its file's bytes, by which vLLM's cache knows it, or one of Pillow's.
Picture: TypeAlias = "MediaWithBytes[Image.Image] | Image.Image"
FRAMES_MAX = 32  # vLLM drops what a list has more, unless it is told otherwise


def load_image(
    source: Any, folder: Path, field: str, options: Mapping[str, Any] | None = None
) -> Picture:
    """A picture from a path, URL, data URI, a file's bytes or a picture of Pillow, of any mode.

    options: for images, of the engine's `media_io_kwargs`. What this returns it also takes.
    ValueError names the field.
    """
    from vllm.multimodal.media import ImageMediaIO, MediaWithBytes

    if isinstance(source, MediaWithBytes):
        return source
    reader = ImageMediaIO(**(options or {}))
    source = _plain(source)
    if not isinstance(source, str | bytes | Image.Image) or not source:
        raise ValueError(f"{field} must be a path, URL, data URI or bytes, not {source!r:.60}")
    file = source if isinstance(source, Image.Image) else _read(source, folder, field, "image")
    try:
        return (
            _converted(file, reader) if isinstance(file, Image.Image) else reader.load_bytes(file)
        )
    except Exception as error:  # decoders raise what they like: the picture is at fault
        why = reason(error).removeprefix("Failed to load image: ")
        raise ValueError(f"{field}: {source!r:.60} is no readable image: {why}") from None


def pixels(picture: Picture) -> Image.Image:
    """The picture of Pillow."""
    return picture if isinstance(picture, Image.Image) else picture.media


def fetch_image(url: str, **options: Any) -> Picture:
    """A picture as vLLM's server loads it, with what it allows and refuses.

    options: of vLLM's `MediaConnector`. Raises what that raises.
    """
    connector = _connector(**options)
    return _finish(connector, lambda: connector.fetch_image_async(url))


def load_video(
    source: Any, folder: Path, field: str, options: Mapping[str, Any] | None = None
) -> str:
    """A video as a `data:` URI that vLLM reads: a file's bytes, or frames one after the other.

    source: a video file, from a path, URL, `data:` URI or its bytes; or a list of its frames,
        whatever `load_image` takes, of one size, at most 32, one a second.
    options: as of `load_image`, for frames.
    ValueError names the field.
    """
    if isinstance(source, list):
        return _frames(source, folder, field, options)
    source = _plain(source)
    if not isinstance(source, str | bytes) or source == "":
        raise ValueError(
            f"{field} must be a path, URL, data URI, bytes or a list of frames, not {source!r:.60}"
        )
    data = _read(source, folder, field, "video")
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


def _is_video(data: bytes) -> bool:
    """Whether vLLM's decoder opens it and finds a frame; a picture counts none."""
    import cv2

    video = cv2.VideoCapture(io.BytesIO(data), cv2.CAP_FFMPEG, [])  # type: ignore[call-overload]
    announced = video.get(cv2.CAP_PROP_FRAME_COUNT) if video.isOpened() else 0
    return announced > 0 and any(video.grab() for _ in range(FRAMES_MAX))


def _converted(image: Image.Image, reader: Any) -> Image.Image:
    """As `reader.load_bytes` converts a file's picture. One of Pillow is read only now."""
    from vllm.multimodal.image import ALLOWED_IMAGE_FORMATS, convert_image_mode, normalize_image

    # MPO: how Pillow calls a JPEG that holds several pictures.
    if image.format not in (None, "MPO", *ALLOWED_IMAGE_FORMATS):
        raise ValueError(f"the format {image.format} is not read")
    image = normalize_image(image)
    image.load()
    mode = reader.image_mode
    if mode is None:
        return image
    return convert_image_mode(image, mode, reader.rgba_background_color)


def _frames(sources: list[Any], folder: Path, field: str, options: Mapping[str, Any] | None) -> str:
    if not 0 < len(sources) <= FRAMES_MAX:
        raise ValueError(f"{field} must have 1 to {FRAMES_MAX} frames, not {len(sources)}")
    frames = [load_image(source, folder, field, options) for source in sources]
    sizes = {pixels(frame).size for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"{field}: frames must have one size, not {sorted(sizes)!s:.60}")
    return "data:video/jpeg;base64," + ",".join(map(_base64, frames))


def _base64(frame: Picture) -> str:
    """The frame's file, else a PNG: vLLM calls a list of frames JPEG and reads any format."""
    if isinstance(frame, Image.Image):
        out = io.BytesIO()
        frame.save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()
    return base64.b64encode(frame.original_bytes).decode()


def _plain(source: Any) -> Any:
    """Of a path its text; of how Hugging Face data sets store files in Parquet, what is there."""
    if isinstance(source, Path):
        return str(source)
    if isinstance(source, Mapping):
        return source.get("bytes") or source.get("path")
    return source


def _read(source: str | bytes, folder: Path, field: str, kind: str) -> bytes:
    """A file's bytes. kind: "image" or "video"."""
    if isinstance(source, bytes):
        return source
    try:
        if is_remote(source):
            return _download(source, kind)
        if source[:5].lower() == "data:":
            return _connector().load_from_url(source, _Bytes())
        if source[:7].lower() == "file://":
            return Path(url2pathname(urlsplit(source).path)).read_bytes()
        if "://" in source:
            raise ValueError("it is no http(s), data: or file: URL")
        return (folder / source).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{field}: no such file {source!r:.200}") from None
    except Exception as error:
        verb = "cannot be loaded" if is_remote(source) else f"is no readable {kind}"
        raise ValueError(f"{field}: {source!r:.200} {verb}: {reason(error)}") from None


class _Bytes:
    """A `MediaIO` of vLLM that leaves a file as it is."""

    def get_max_bytes(self) -> None:
        """vLLM's own limit holds."""

    def load_bytes(self, data: bytes) -> bytes:
        return data

    def load_base64(self, media_type: str, data: str) -> bytes:
        return base64.b64decode(data, validate=True)


def _download(url: str, kind: str) -> bytes:
    from vllm import envs

    seconds = {"image": envs.VLLM_IMAGE_FETCH_TIMEOUT, "video": envs.VLLM_VIDEO_FETCH_TIMEOUT}
    connector = _connector()
    return _finish(
        connector,
        lambda: connector.load_from_url_async(url, _Bytes(), fetch_timeout=seconds[kind]),
    )


def _connector(**options: Any) -> Any:
    from vllm import envs
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    return MEDIA_CONNECTOR_REGISTRY.load(envs.VLLM_MEDIA_CONNECTOR, **options)


def _finish(connector: Any, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What the coroutine returns, from code that waits; in a notebook a loop runs already.

    vLLM bounds each try of its asynchronous client from start to end, of the other one only
    the time between two pieces: a host that drips would be waited for without end.
    """
    from vllm.connections import HTTPConnection

    async def run() -> Any:
        connector.connection = HTTPConnection()
        try:
            return await start()
        finally:
            await (await connector.connection.get_async_client()).close()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result()
