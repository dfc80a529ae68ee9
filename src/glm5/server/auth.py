"""API keys: `Authorization: Bearer KEY` as OpenAI clients send it, or `x-api-key: KEY` as Anthropic clients do.

Keys are compared in constant time (by their hashes, against all of them), so that the time of a refusal tells nothing.
Health, metrics and the chat page itself need no key; whatever makes or reads tokens does.
"""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from glm5.server.errors import ApiError, error_response

_GUARDED = ("/v1/", "/generate", "/tokenize", "/detokenize")


class KeyCheck:
    """ASGI middleware that lets a guarded request in only with one of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        """Guard `app`; without any keys everybody may come in."""
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED) and not self._admits(Headers(scope=scope)):
            error = ApiError(
                401, "wrong or missing API key; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            )
            response = error_response(error, scope["path"], scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        if not self._digests:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given = _digest(key.encode("latin-1"))  # how HTTP headers are decoded: this gives back the bytes as sent
        matches = [hmac.compare_digest(given, known) for known in self._digests]  # with all, whichever fits
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
