"""The gateway over HTTP, so that any agent can be trained: each rollout is an API of its own at `/rollouts/ID/v1`.

OpenAI's chat completions and Anthropic's messages, streamed or not, read and written by the server's own surfaces. The
name of the model is the agent's business: any will do. A rollout that never was is 404, one that has ended is 409.
"""

from typing import TypeVar

from fastapi import APIRouter, FastAPI, Request, Response

import glm5
from glm5.rl.gateway import ClosedRollout, Gateway, UnknownRollout
from glm5.server import errors
from glm5.server.anthropic import MessageAnswer
from glm5.server.anthropic_request import MessagesBody
from glm5.server.anthropic_request import read_request as read_messages_request
from glm5.server.chat import ChatAnswer, ChatBody
from glm5.server.chat import read_request as read_chat_request
from glm5.server.errors import ApiError, error_response
from glm5.server.gate import BodyLimit, RequestId
from glm5.server.sse import EventStream, json_reply, while_connected
from glm5.text.thinking import ThinkingOptions

_MAX_BODY_BYTES = 64 << 20
_MODEL = "glm-5"
_STATUS: dict[type[Exception], int] = {UnknownRollout: 404, ClosedRollout: 409}

B = TypeVar("B", ChatBody, MessagesBody)


def gateway_app(gateway: Gateway) -> FastAPI:
    """The application. It has no keys: agents in sandboxes reach nothing but their rollout's address."""
    app = FastAPI(title="glm5 gateway", version=glm5.__version__, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limit=_MAX_BODY_BYTES)
    app.add_middleware(RequestId)
    errors.install(app)

    async def no_rollout(request: Request, error: Exception) -> Response:
        told = ApiError(_STATUS[type(error)], str(error), code="rollout_not_open")
        response = error_response(told, request.url.path, request.state.request_id)
        response.headers["x-should-retry"] = "false"  # both clients would try a 409 again
        return response

    for kind in _STATUS:
        app.add_exception_handler(kind, no_rollout)
    app.include_router(_routes(gateway), prefix="/rollouts/{rollout_id}/v1")
    return app


def _routes(gateway: Gateway) -> APIRouter:
    routes = APIRouter()

    @routes.post("/chat/completions")
    async def chat_completions(rollout_id: str, body: ChatBody, request: Request) -> Response:
        wanted = read_chat_request(_with_thinking(body, gateway.settings.thinking), gateway.tokenizer)
        turn = gateway.turn(rollout_id, wanted, body.temperature)
        answer = ChatAnswer(gateway.tokenizer, body, body.model or _MODEL, turn, request.state.request_id)
        if body.stream:
            return EventStream(answer.chunks(), answer.failure)
        return json_reply(await while_connected(request, answer.whole()))

    @routes.post("/messages")
    async def messages(rollout_id: str, body: MessagesBody, request: Request) -> Response:
        wanted = read_messages_request(_with_thinking(body, gateway.settings.thinking), gateway.tokenizer)
        turn = gateway.turn(rollout_id, wanted, body.temperature)
        answer = MessageAnswer(body.model or _MODEL, turn, request.state.request_id)
        if body.stream:
            return EventStream(answer.events(), answer.failure)
        return json_reply(await while_connected(request, answer.whole()))

    @routes.get("/models")
    async def models(rollout_id: str) -> Response:
        gateway.rollout(rollout_id)
        length = gateway.settings.context_length
        model = {"id": _MODEL, "object": "model", "created": 0, "owned_by": "glm5", "max_model_len": length}
        return json_reply({"object": "list", "data": [model]})

    return routes


def _with_thinking(body: B, default: ThinkingOptions) -> B:
    """The body with the rollout's own thinking options where the agent says nothing."""
    said = body.thinking or {}
    options = dict(body.chat_template_kwargs or {})
    if said.get("type") is None and "reasoning_effort" not in body.model_fields_set:
        options.setdefault("enable_thinking", default.enable_thinking)
    if said.get("clear_thinking") is None:
        options.setdefault("clear_thinking", default.clear_thinking)
    return body.model_copy(update={"chat_template_kwargs": options})
