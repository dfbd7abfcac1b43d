"""The HTTP app of an engine: OpenAI's images API, health, metrics; behind one guard."""

from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from anystep import __version__
from anystep.errors import InputError
from anystep.studio.answers import Refusal, answer_error
from anystep.studio.engine import Draining, Engine
from anystep.studio.fair_queue import QueueFull
from anystep.studio.guard import Guard, GuardOptions
from anystep.studio.images_routes import answers, images_router
from anystep.studio.metrics import Metrics

HANDLED = (
    Refusal, InputError, ValidationError, RequestValidationError, HTTPException, QueueFull, Draining, TimeoutError,
)  # fmt: skip


@dataclass(frozen=True)
class AppOptions:
    """Of the app: who may ask, and the most seconds that a request waits."""

    guard: GuardOptions = field(default_factory=GuardOptions)
    deadline: float = 120.0


class Service:
    """An engine as an ASGI app.

    Attributes:
        api: the FastAPI app, to which routes may be added.
        metrics: counts of the engine.
        asgi: what a server runs: the app behind its guard.
        ready: whether `/readyz` says so; a server that is about to end sets it to false.
    """

    def __init__(self, engine: Engine, options: AppOptions = AppOptions()) -> None:
        self.engine, self.ready = engine, True
        self.metrics = Metrics(engine)
        engine.on_drawn, engine.on_event = self.metrics.on_drawn, self.metrics.on_event
        self.api = FastAPI(title="anystep", version=__version__, docs_url=None, redoc_url=None)
        for kind in (*HANDLED, Exception):
            self.api.add_exception_handler(kind, answer_error)
        self.api.include_router(images_router(engine, options.deadline))

        @self.api.get("/healthz", responses=answers("alive", 403))
        async def healthz() -> dict[str, Any]:
            """Whether the server lives."""
            return {"status": "ok"}

        @self.api.get("/readyz", responses=answers("ready", 403, 503))
        async def readyz() -> Response:
            """Whether the server takes requests."""
            ready = self.ready and not engine.draining
            return JSONResponse({"status": "ready" if ready else "ending"}, 200 if ready else 503)

        @self.api.get("/metrics", response_class=Response, responses=answers("Prometheus' text format", 401, 403))
        async def prometheus() -> Response:
            """Counts, for a monitor."""
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

        guarded: ASGIApp = Guard(self.api, options.guard)
        if options.guard.origins:
            guarded = CORSMiddleware(
                guarded, options.guard.origins, allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"], expose_headers=["Retry-After"],
            )  # fmt: skip
        self.asgi = guarded
