"""The page, and what it asks for beside OpenAI's API: pictures as they are made, the gallery, and recalled settings."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response

from anystep.errors import InputError
from anystep.pipelines.settings import settings_in
from anystep.studio.answers import Refusal, refusal
from anystep.studio.draw import Drawn, file_content
from anystep.studio.engine import Engine
from anystep.studio.event_stream import HEARD, EventStream, event_text
from anystep.studio.events import submitted
from anystep.studio.gallery import Gallery
from anystep.studio.images_routes import check_content_type
from anystep.studio.job import Event, Failed, Progress, Started
from anystep.studio.model_card import model_card
from anystep.studio.page_fields import PageFields, recalled

PAGE = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_KEPT = 200  # pictures of one answer
HEADERS = {
    # nothing from elsewhere, and in no frame of others
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_router(engine: Engine, gallery: Gallery, deadline: float) -> APIRouter:
    """The routes over an engine; `deadline` is the most seconds that a picture waits."""
    router = APIRouter(include_in_schema=False)
    cards: dict[str, Any] = {}

    @router.get("/")
    async def page() -> Response:
        return asset("index.html")

    @router.get("/page/{name}")
    async def part(name: str) -> Response:
        return asset(name)

    @router.get("/studio/models")
    async def models() -> Response:
        for name in engine.painters.keys() - cards.keys():
            cards[name] = await asyncio.to_thread(model_card, name, engine.model(name), engine.limits)
        return JSONResponse([cards[name] for name in engine.painters], headers=HEADERS)

    @router.post("/studio/draw")
    async def draw(request: Request) -> Response:
        check_content_type(request, "application/json")
        fields = PageFields.model_validate_json(await request.body(), strict=True)
        requests = await asyncio.to_thread(fields.requests, engine)
        user = f"{request.state.user} {fields.fields.user or ''}"
        context = submitted(engine, requests, user, deadline)
        events = await context.__aenter__()
        return EventStream(drawing(events, gallery if fields.keep else None), context)

    @router.get("/studio/gallery")
    async def kept(before: str | None = None, count: int = 60) -> Response:
        found = islice(pictures(gallery, engine, before), max(1, min(count, MOST_KEPT)))
        return JSONResponse(await asyncio.to_thread(list, found), headers=HEADERS)

    @router.get("/studio/gallery/{name}")
    async def picture(name: str) -> Response:
        headers = {**HEADERS, "Cache-Control": "private, max-age=31536000, immutable"}
        return FileResponse(existing(gallery, name), media_type="image/png", headers=headers)

    @router.delete("/studio/gallery/{name}")
    async def remove(name: str) -> Response:
        existing(gallery, name)
        await asyncio.to_thread(gallery.remove, name)
        return Response(status_code=204)

    @router.post("/studio/recall")
    async def recall(request: Request) -> Response:
        check_content_type(request, "application/octet-stream")
        content = BytesIO(await request.body())
        settings = await asyncio.to_thread(settings_in, content, "this picture")
        return JSONResponse(await asyncio.to_thread(recalled, settings, engine))

    return router


def asset(name: str) -> Response:
    """A file of the page."""
    path = PAGE / name
    if not re.fullmatch(r"[a-z_]+\.[a-z]+", name) or path.suffix not in KINDS or not path.is_file():
        raise Refusal(404, "there is no such page")
    return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=HEADERS)


def pictures(gallery: Gallery, engine: Engine, before: str | None) -> Iterator[dict[str, Any]]:
    """Names and fields of the gallery's pictures; one whose settings cannot be is as little ours as one without any."""
    for each in gallery.latest(before):
        with suppress(InputError):
            yield {"name": each.name, **recalled(each.settings, engine)}


def existing(gallery: Gallery, name: str) -> Path:
    """The file of a picture, or a 404."""
    try:
        return gallery.path(name)
    except InputError as error:
        raise Refusal(404, str(error)) from None


async def drawing(events: AsyncIterator[tuple[int, Event]], gallery: Gallery | None) -> AsyncIterator[str]:
    """Events for the page: what began, each transition, and each picture or why there is none."""
    yield HEARD
    async for place, event in events:
        if isinstance(event, Started):
            yield event_text("started", {"index": place})
        elif isinstance(event, Progress):
            said: dict[str, Any] = {"index": place, "transition": event.transition, "transitions": event.transitions}
            if event.preview is not None:
                said["image"] = in_base64(await asyncio.to_thread(file_content, event.preview))
            yield event_text("progress", said)
        elif isinstance(event, Drawn):
            yield event_text("drawn", {"index": place, **await asyncio.to_thread(told, event, gallery)})
        elif isinstance(event, Failed):
            yield event_text("failed", {"index": place, **refusal(event.reason).body})


def told(drawn: Drawn, gallery: Gallery | None) -> dict[str, Any]:
    """A picture, what it cost, and its name in the gallery; where that cannot be written, why."""
    content, request = drawn.encoded(), drawn.request
    said: dict[str, Any] = {"kept": None}
    if gallery is not None and drawn.texts:
        try:
            said["kept"] = gallery.keep(drawn, content)
        except (OSError, InputError) as error:
            said["unkept"] = refusal(InputError(f"the gallery cannot be written: {error}")).message
    return {
        **said, "image": in_base64(content), "prompt": request.prompt, "model": request.model, "seed": request.seed,
        "steps": request.steps, "made": drawn.steps, "nfe": drawn.nfe, "guidance": request.guidance,
        "milliseconds": 1000 * drawn.seconds, "together": drawn.batch,
        "width": drawn.image.width, "height": drawn.image.height,
    }  # fmt: skip


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
