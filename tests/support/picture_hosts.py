"""Hosts that have a picture, have none, or do not answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PICTURE = "/picture"
# What is asked for, and the HTTP status with which a server answers a request for it.
TROUBLE = {
    "/silent": 422,
    "/drip": 422,
    "/cut": 422,
    "/close": 422,
    "/status/404": 422,
    "/status/408": 422,
    "/status/429": 422,
    "/status/500": 422,
    "/status/503": 422,
    "/circle": 422,
    "/text": 400,
    "/empty": 400,
}


@contextmanager
def hosts(picture: bytes) -> Iterator[dict[str, str]]:
    """What is asked for -> URL; it has TROUBLE, PICTURE, "no host" and "no name" too."""
    ending = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            what = self.path
            if what == "/silent":
                ending.wait()
            elif what == "/close":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif what.startswith("/status/"):
                self.answer(b"no", int(what.rpartition("/")[2]))
            elif what == "/circle":
                self.answer(b"", 302, {"Location": "/circle"})
            elif what == "/drip":
                self.answer(b"", 200, {"Content-Length": str(len(picture))})
                for byte in picture:
                    if ending.wait(0.2):
                        break
                    self.wfile.write(bytes([byte]))
            elif what == "/cut":
                self.answer(picture[:50], 200, {"Content-Length": str(len(picture))})
            else:
                self.answer({"/text": b"no picture", "/empty": b""}.get(what, picture), 200)

        def answer(self, body: bytes, status: int, head: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | (head or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            with suppress(OSError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        urls = {what: base + what for what in (*TROUBLE, PICTURE)}
        urls["no host"] = f"http://127.0.0.1:{closed.getsockname()[1]}/picture"
        urls["no name"] = "http://nowhere.invalid/picture"
        try:
            yield urls
        finally:
            ending.set()
            server.shutdown()
            server.server_close()
