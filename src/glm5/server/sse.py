"""Answers that last: server-sent events, and the client that goes away or stops reading in the middle.

The status line waits for the first event, so a request that is refused before its first token still gets the status it
deserves. A client that hangs up ends the work at once, streaming or not; one that keeps the line open but reads nothing
is dropped after `SEND_TIMEOUT`, and until then holds up nobody but itself.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

log = logging.getLogger("glm5.server")

KEEP_ALIVE = 15.0  # seconds without an event after which a comment is sent, because proxies cut silent lines
SEND_TIMEOUT = 60.0  # seconds that a full socket may stay full

T = TypeVar("T")


def dumps(value: Any) -> str:
    """Compact JSON, as every body and event here is written."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def json_reply(value: Any) -> Response:
    """A whole answer."""
    return Response(dumps(value), media_type="application/json")


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event; `data` is sent as JSON, a `bytes` value as it is."""
    text = data if isinstance(data, bytes) else dumps(data).encode()
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + text + b"\n\n"


DONE = event(b"[DONE]")


class EventStream(Response):
    """A response made of events as they come.

    When `events` fails before its first event the exception propagates and becomes an ordinary error response; later
    ones are sent as the event that `failure` makes of them.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        failure: Callable[[Exception], bytes],
        send_timeout: float = SEND_TIMEOUT,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._failure = failure
        self._send_timeout = send_timeout
        self._started = False
        self._upcoming: asyncio.Future[bytes | None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the events end or the client is gone; either way `events` is closed."""
        writing = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        except TimeoutError:
            log.warning("a client read nothing for %.0f s and was dropped", self._send_timeout)
        finally:
            await _cancel(writing, gone)
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        try:
            while (data := await self._next()) is not None:
                await self._send(send, data)
        except Exception as error:
            if not self._started or isinstance(error, TimeoutError):
                raise
            log.error("a stream failed after it had begun", exc_info=error)
            await self._send(send, self._failure(error))
        await self._send(send, b"", more=False)

    async def _next(self) -> bytes | None:
        """The next event, a comment when none comes for long, None at the end."""
        if self._upcoming is None:
            self._upcoming = asyncio.ensure_future(anext(self._events, None))
        try:
            done, _ = await asyncio.wait({self._upcoming}, timeout=KEEP_ALIVE)
        except asyncio.CancelledError:
            await _cancel(self._upcoming)
            raise
        if not done:
            return b": still working\n\n"
        finished, self._upcoming = self._upcoming, None
        return finished.result()

    async def _send(self, send: Send, data: bytes, more: bool = True) -> None:
        async with asyncio.timeout(self._send_timeout):
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up first (then raises ClientDisconnect)."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await _cancel(working, gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
