"""The way in: a name for every request, a bound on bodies and on requests in flight, and a door that closes gently.

    request ── id ── size? ── room? draining? ──> app
                      413        429    503

Draining means: `/health` turns to 503 so that balancers look elsewhere, new work is refused with `retry-after`, and
what is in flight is finished.
"""

import asyncio
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm5.server.errors import ApiError, error_response

_GOOD_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_RETRY_AFTER = 5  # seconds
_MAX_DISCARDED = 1 << 28  # bytes of a body too large that are read away, so that its sender gets to see the answer


class RequestId:
    """ASGI middleware: takes the client's `x-request-id` or makes one, and sends it back in the names both APIs use."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with `request.state.request_id` set."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("x-request-id", "")
        request_id = wanted if _GOOD_REQUEST_ID.fullmatch(wanted) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class BodyLimit:
    """ASGI middleware that refuses a body of more than `limit` bytes, whether or not its length was announced."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body read, or answer 413."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        chunks: list[bytes] = []
        size, more = 0, True
        while more and size <= _MAX_DISCARDED:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunk = message.get("body", b"")
            size += len(chunk)
            more = message.get("more_body", False)
            chunks.append(chunk)
            if size > self._limit:
                chunks.clear()
        if size > self._limit:
            error = ApiError(413, f"the body has more than {self._limit} bytes, the most this server reads")
            response = error_response(error, scope["path"], scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        body: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]
        await self._app(scope, lambda: _pop_or(body, receive), send)


class Gate:
    """Counts the requests that make tokens, and can be closed.

    Attributes:
        draining: set it, and no new work is taken.
        in_flight: requests being served.
    """

    def __init__(self, limit: int) -> None:
        """Let at most `limit` requests in at once."""
        self.draining = False
        self.in_flight = 0
        self._limit = limit
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Take a request in. Raises ApiError (503, 429) when draining or full."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", retry_after=_RETRY_AFTER)
        if self.in_flight >= self._limit:
            raise ApiError(429, f"{self._limit} requests are in flight, try again later", retry_after=_RETRY_AFTER)
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request is done."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Returns when nothing is in flight."""
        await self._idle.wait()


class GateKeeper:
    """ASGI middleware that passes POST requests through a `Gate`."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while it counts as in flight, or answer 429 or 503."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            self._gate.enter()
        except ApiError as error:
            await error_response(error, scope["path"], scope["state"]["request_id"])(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._gate.leave()


async def _pop_or(body: list[Message], receive: Receive) -> Message:
    return body.pop() if body else await receive()
