"""The whole server as one ASGI application: surfaces, middleware, errors, the small routes and the chat page."""

import asyncio
import time
from importlib import resources

from fastapi import APIRouter, FastAPI, Response
from starlette.responses import JSONResponse

import glm5
from glm5.server import anthropic, chat, completions, errors, responses, tokens
from glm5.server.auth import KeyCheck
from glm5.server.gate import BodyLimit, GateKeeper, RequestId
from glm5.server.service import ServerSettings, Service, TokenEngine
from glm5.server.sse import json_reply
from glm5.text.tokenizer import Tokenizer

_PAGE = {
    "": ("chat.html", "text/html"),
    "chat.css": ("chat.css", "text/css"),
    "chat.js": ("chat.js", "text/javascript"),
}
# The page loads nothing from anywhere else, and no answer of a model can make it.
_PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"


def create_app(engine: TokenEngine, tokenizer: Tokenizer, settings: ServerSettings) -> FastAPI:
    """The application; `app.state.service` is what it works with.

    Raises:
        GLM5Error: the tokenizer lacks the markers of a GLM conversation.
    """
    service = Service(engine, tokenizer, settings)
    app = FastAPI(title="glm5", version=glm5.__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    # From the inside out: a request gets its id first and is counted last, when its body has come.
    app.add_middleware(GateKeeper, gate=service.gate)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(KeyCheck, keys=settings.api_keys)
    app.add_middleware(RequestId)
    errors.install(app)
    for surface in (chat, completions, responses, anthropic, tokens):
        app.include_router(surface.router(service))
    app.include_router(_small_routes(service))
    return app


def _small_routes(service: Service) -> APIRouter:
    routes = APIRouter()
    started = int(time.time())

    @routes.get("/v1/models")
    async def models() -> Response:
        names = service.settings.model_names
        return json_reply({"object": "list", "data": [_model(name, service, started) for name in names]})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_reply(_model(service.model_name(name), service, started))

    @routes.get("/health")
    async def health() -> Response:
        status = "draining" if service.gate.draining else "ok"
        return JSONResponse({"status": status, "in_flight": service.gate.in_flight}, 200 if status == "ok" else 503)

    @routes.get("/metrics")
    async def metrics() -> Response:
        text = await asyncio.to_thread(service.metrics.text)  # the engine's numbers wait for the step under way
        return Response(text, media_type="text/plain; version=0.0.4")

    for name, (file, media_type) in _PAGE.items():
        routes.add_api_route(f"/{name}", _page_route(file, media_type), methods=["GET"])
    return routes


def _model(name: str, service: Service, started: int) -> dict[str, object]:
    length = service.settings.context_length
    return {"id": name, "object": "model", "created": started, "owned_by": "glm5", "max_model_len": length}


def _page_route(file: str, media_type: str):  # type: ignore[no-untyped-def]  # a closure over one file
    text = resources.files("glm5.server").joinpath("page", file).read_text(encoding="utf-8")

    async def page() -> Response:
        return Response(text, media_type=media_type, headers={"content-security-policy": _PAGE_POLICY})

    return page
