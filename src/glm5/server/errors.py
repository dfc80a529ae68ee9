"""Every failure in the shape of the API that was called: OpenAI's error object, or Anthropic's under `/v1/messages`.

A message is for the person at the other end. What was asked wrongly (`UsageError`) is 400 and says so; what failed here
is 500; a bug is 500 too, and only the log gets its details.
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from glm5.errors import GLM5Error, UsageError

log = logging.getLogger("glm5.server")

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CLIENT_GONE = 499  # the convention for a client that hung up; nobody reads it


class ApiError(HTTPException):
    """A request that cannot be served. `code` and `param` appear in OpenAI's shape only."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        headers = None if retry_after is None else {"retry-after": str(retry_after)}
        super().__init__(status, message, headers)
        self.code = code
        self.param = param


def as_api_error(error: Exception) -> ApiError:
    """What to tell the client about any exception; of a bug, nothing but that there is one."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            return ApiError(error.status_code, str(error.detail))
        case RequestValidationError():
            return _validation_error(error)
        case UsageError():
            return ApiError(400, str(error))
        case GLM5Error():
            return ApiError(500, str(error))
        case _:
            return ApiError(500, "internal error; the server's log has the details")


def is_anthropic(path: str) -> bool:
    """Whether the path belongs to the Anthropic surface, also where a rollout's name stands before it."""
    return "/v1/messages" in path


def error_body(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    """The JSON body for `error`, in the shape of the API that `path` belongs to."""
    status, message = error.status_code, str(error.detail)
    server_side = status >= 500
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if server_side else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    kind = _OPENAI_TYPES.get(status, "server_error" if server_side else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: Exception, path: str, request_id: str) -> Response:
    """The whole response for `error`."""
    told = as_api_error(error)
    return JSONResponse(error_body(told, path, request_id), told.status_code, headers=told.headers)


def install(app: FastAPI) -> None:
    """Answer every exception of the app in the right shape."""

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=_CLIENT_GONE)
        if isinstance(error, GLM5Error) and not isinstance(error, UsageError):
            log.error("%s", error)
        return error_response(error, request.url.path, request.state.request_id)

    for kind in (HTTPException, RequestValidationError, GLM5Error, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer)


def _validation_error(error: RequestValidationError) -> ApiError:
    """The first thing wrong with a body, named as the client spelled it."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON: {reason} (at character {first['loc'][-1]})")
    where = _dotted(first["loc"][1:])
    if not where:
        return ApiError(400, "the body must be a JSON object, sent with the header content-type: application/json")
    return ApiError(400, f"{where}: {first['msg']}", param=where)


def _dotted(location: Sequence[Any]) -> str:
    return ".".join(str(part) for part in location)
