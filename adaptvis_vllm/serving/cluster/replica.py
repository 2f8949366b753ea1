"""A Serve replica: vLLM's own HTTP app over an engine of its own.

So errors, streams and metrics are vLLM's. An engine that failed takes its replica with it:
Serve's health checks would need seconds to find out, in which every request fails.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adaptvis_vllm.serving.app import build

WATCH_S = 0.1
HEADER = b"x-replica"
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported
logger = logging.getLogger("ray.serve")


class Watchdog:
    """Ends the process once its engine has failed. Stands in for the `uvicorn.Server` whose
    `should_exit` vLLM sets when a request meets a dead engine."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.should_exit = False

    async def run(self) -> None:
        while not (self.engine.errored or self.should_exit):
            await asyncio.sleep(WATCH_S)
        logger.error("the engine of this replica failed; the replica ends")
        logging.shutdown()
        os._exit(1)


class Named:
    """Adds to every response the replica that made it."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self.name = name.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER, self.name)]
            await send(message)

        await self.app(scope, receive, named)


@serve.ingress()
class Replica:
    """args: options of `vllm serve` (`serving.options.parse`)."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.closing = AsyncExitStack()
        Path(os.environ[METRICS_FOLDER]).mkdir(parents=True, exist_ok=True)

    async def __serve_build_asgi_app__(self) -> Any:
        from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

        # The engine is a child of this process and joins the cluster for its Ray workers.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        self.engine = await self.closing.enter_async_context(build_async_engine_client(self.args))
        app = await build(self.engine, self.args)
        watchdog = Watchdog(self.engine)
        app.state.server = watchdog
        self.watch = asyncio.create_task(watchdog.run())
        # vLLM has built the stack already, too late for `add_middleware`.
        stack = app.middleware_stack or app.build_middleware_stack()
        app.middleware_stack = Named(stack, serve.get_replica_context().replica_id.unique_id)
        return app

    async def check_health(self) -> None:
        await self.engine.check_health()

    async def __del__(self) -> None:
        """Called by Serve after the last request of a replica that is to stop."""
        if hasattr(self, "watch"):
            self.watch.cancel()
        await self.closing.aclose()
