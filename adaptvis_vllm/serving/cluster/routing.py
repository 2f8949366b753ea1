"""Requests about one picture go to one replica, whose prefix cache holds it.

Ray's `ConsistentHashRouter` sends requests with the same session header to the same replica,
or to the next one on its ring where that is full or gone. This middleware runs in Serve's
HTTP proxies (`CALLBACK` is in their environment) and adds that header to requests
that lack it: a hash of the request's first picture, with which its prompt begins. Requests
without a picture are spread evenly. (`ray.serve.llm`'s prefix router compares text only.)
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
CALLBACK = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "adaptvis_vllm.serving.cluster.routing.middlewares"
}
HEADER = b"x-session-id"  # Serve's default, RAY_SERVE_SESSION_ID_HEADER_KEY
# Where chat messages and /adaptvis/sweep have them.
_PICTURES = ("image_url", "image", "images")


def middlewares() -> list[Middleware]:
    """The callback."""
    return [Middleware(PictureSession)]


def picture_key(body: bytes) -> str | None:
    """Hash of the first picture in a JSON body (its URL or data URI); None without one."""
    if b"image" not in body:
        return None
    try:
        found = _first_picture(json.loads(body))
    except (ValueError, RecursionError):
        return None  # vLLM refuses it
    if found is None:
        return None
    # A lone surrogate is JSON and no UTF-8; vLLM refuses it.
    name = found.encode(errors="surrogatepass")
    return hashlib.blake2b(name, digest_size=16).hexdigest()


def _first_picture(value: Any) -> str | None:
    if isinstance(value, dict):
        for name in _PICTURES:
            picture = value.get(name)
            if picture and isinstance(picture, list):
                picture = picture[0]
            if isinstance(picture, dict):
                picture = picture.get("url")
            if picture and isinstance(picture, str):
                return picture
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := _first_picture(item))), None)
    return None


class PictureSession:
    """Adds the session header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] != "POST"
            or any(name.lower() == HEADER for name, _ in scope["headers"])
        ):
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
        key = picture_key(b"".join(message.get("body", b"") for message in messages))
        if key is not None:
            scope = {**scope, "headers": [*scope["headers"], (HEADER, key.encode())]}

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)
