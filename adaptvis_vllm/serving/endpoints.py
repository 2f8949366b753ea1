"""The `vllm.endpoint_plugins` entry point: routes below `/adaptvis`.

vLLM loads it where VLLM_PLUGINS names `adaptvis`; `adaptvis serve` sees to that.
"""

# Annotations stay objects: FastAPI reads them through vLLM's decorator.
from argparse import Namespace
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from vllm import envs
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from adaptvis_vllm.look.page import page
from adaptvis_vllm.serving.info import describe
from adaptvis_vllm.serving.sweep import Sweep, SweepRequest


def authenticate(raw_request: Request) -> None:
    """vLLM asks for the API key below /v1 only; our routes ask for the same one."""
    app = raw_request.app
    tokens = [key for key in (app.state.args.api_key or [envs.VLLM_API_KEY]) if key]
    if tokens and not AuthenticationMiddleware(app, tokens).verify_token(raw_request.headers):
        raise HTTPException(401, "Unauthorized")


router = APIRouter(prefix="/adaptvis", dependencies=[Depends(authenticate)])
# A browser that opens a page sends no key; the page holds nothing, and asks with one.
pages = APIRouter(prefix="/adaptvis")


@pages.get("/look", include_in_schema=False)
async def look() -> HTMLResponse:
    """Pictures, answers and attention maps in a browser."""
    return HTMLResponse(page())


@router.get("")
async def info(raw_request: Request) -> JSONResponse:
    """Defaults, versions, backend, limits and counters of this server."""
    return JSONResponse(describe(raw_request.app.state.engine_client))


@router.post("/sweep", dependencies=[Depends(validate_json_request)])
@with_cancellation
async def sweep(request: SweepRequest, raw_request: Request) -> JSONResponse:
    """One question under several alphas."""
    status, body = await raw_request.app.state.adaptvis_sweep.run(request)
    return JSONResponse(body, status_code=status)


class Endpoints:
    """See vLLM's `EndpointPlugin`."""

    name = "adaptvis"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)
        app.include_router(pages)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        state.adaptvis_sweep = Sweep(state.openai_serving_chat, engine_client.vllm_config)
