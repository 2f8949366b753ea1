"""vLLM's HTTP app, for an engine of our own."""

from __future__ import annotations

import argparse
from typing import Any


async def build(engine: Any, args: argparse.Namespace) -> Any:
    """vLLM's FastAPI app, our routes included, ready to serve an `AsyncLLM`."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    return app
