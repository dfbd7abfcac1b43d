"""What is answered instead of an image: a status and a JSON reason in the form of OpenAI's API."""

from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from anystep.bounds import cut
from anystep.errors import InputError, one_line
from anystep.studio.engine import Draining, UnknownModel
from anystep.studio.fair_queue import QueueFull
from anystep.studio.job import Cancelled

# error codes of the API by status
CODES = {
    400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "request_timeout", 413: "request_too_large", 415: "unsupported_media_type", 429: "queue_full",
    499: "cancelled", 500: "server_error", 503: "shutting_down", 504: "deadline_passed",
}  # fmt: skip


@dataclass
class Refusal(Exception):
    """A request that is answered with a status and a reason."""

    status: int
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        said = {
            "message": one_line(self.message),
            "type": kind,
            "param": self.param,
            "code": CODES.get(self.status, "error"),
        }
        return {"error": said}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def refusal(error: Exception) -> Refusal:
    """What an exception is answered with."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ValidationError | RequestValidationError):
        first = error.errors()[0]
        # FastAPI's begin with where in the request it is
        place = ".".join(map(str, first["loc"][isinstance(error, RequestValidationError) :]))
        message = f"{place}: {first['msg']}" if place else first["msg"]
        given = first["input"]
        shown = (
            f", got {cut(repr(given))}" if first["type"] != "missing" and isinstance(given, str | int | float) else ""
        )
        return Refusal(400, message + shown, place or None)
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, UnknownModel):
        return Refusal(404, str(error), "model")
    if isinstance(error, InputError):
        return Refusal(400, str(error))
    if isinstance(error, QueueFull):
        return Refusal(429, str(error), headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, Draining):
        return Refusal(503, str(error), headers={"Retry-After": "1"})
    if isinstance(error, TimeoutError):
        return Refusal(504, str(error) or "the deadline of this request has passed")
    if isinstance(error, Cancelled):
        return Refusal(499, str(error))
    return Refusal(500, "a fault of this server, which its log tells more of")


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """An exception handler of the app."""
    return refusal(error).response()
