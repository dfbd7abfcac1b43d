"""The routes of OpenAI's images API: generations, edits and models."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from anystep.studio.answers import CODES, Refusal, refusal
from anystep.studio.draw import QUALITY, Drawn, file_content
from anystep.studio.engine import Engine
from anystep.studio.event_stream import HEARD, EventStream, event_text
from anystep.studio.events import submitted
from anystep.studio.job import Event, Failed, Progress
from anystep.studio.openai_images import FORMATS, EditFields, GenerationFields, ImageFields, Start, parse_form
from anystep.studio.request import ImageRequest

NO_TOKENS = {
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip
log = logging.getLogger(__name__)
REFUSED = (400, 401, 403, 404, 408, 413, 415, 429, 503, 504)


def images_router(engine: Engine, deadline: float) -> APIRouter:
    """The routes over an engine; `deadline` is the most seconds that any request waits."""
    router, began = APIRouter(prefix="/v1"), int(time.time())

    async def answer(request: Request, fields: ImageFields, images: Sequence[ImageRequest], kind: str) -> Response:
        seconds = min(deadline, fields.deadline or deadline)
        context = submitted(engine, images, request.state.user, seconds)
        if fields.stream:
            return EventResponse(context, await context.__aenter__(), fields, kind, seconds)
        async with context as events:
            drawn = await unless_gone(request, all_drawn(events, len(images)), seconds)
        data = await asyncio.gather(*(asyncio.to_thread(image_data, fields, each) for each in drawn))
        size = f"{drawn[0].image.width}x{drawn[0].image.height}"
        said = {"output_format": fields.form, "size": size, "background": "opaque", "usage": NO_TOKENS}
        return JSONResponse({"created": int(time.time()), "data": data, **said})

    @router.post("/images/generations", openapi_extra=body_of(GenerationFields), responses=DRAWN)
    async def generations(request: Request) -> Response:
        """Draw a prompt."""
        check_content_type(request, "application/json")
        fields = GenerationFields.model_validate_json(await request.body(), strict=True)
        return await answer(request, fields, fields.requests(engine), "image_generation")

    @router.post("/images/edits", openapi_extra=body_of(EditFields, "image"), responses=DRAWN)
    async def edits(request: Request) -> Response:
        """Draw a prompt, starting from an image."""
        check_content_type(request, "multipart/form-data")
        async with request.form(max_files=4, max_fields=100) as form:
            fields, file = parse_form(form.multi_items())
            start = await asyncio.to_thread(Start.read, await file.read())
        return await answer(request, fields, fields.requests(engine, start, fields.strength), "image_edit")

    def about(name: str) -> dict[str, Any]:
        engine.model(name)
        return {"id": name, "object": "model", "created": began, "owned_by": "anystep"}

    @router.get("/models", responses=answers("models", 401, 403))
    async def models() -> dict[str, Any]:
        """The models that there are."""
        return {"object": "list", "data": [about(name) for name in engine.painters]}

    @router.get("/models/{name}", responses=answers("a model", 401, 403, 404))
    async def model(name: str) -> dict[str, Any]:
        """One of the models."""
        return about(name)

    return router


async def all_drawn(events: AsyncIterator[tuple[int, Event]], count: int) -> list[Drawn]:
    """The images in their order. Raises the reason of the first that failed."""
    drawn: dict[int, Drawn] = {}
    async for place, event in events:
        if isinstance(event, Failed):
            raise event.reason
        if isinstance(event, Drawn):
            drawn[place] = event
    return [drawn[place] for place in range(count)]


async def unless_gone(request: Request, work: Any, seconds: float) -> Any:
    """The result of work, which ends when the client goes away (a `Refusal` that nobody reads) or time is over."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Refusal(499, "the client has gone") if leaving.done() else TimeoutError
    finally:
        working.cancel()
        leaving.cancel()


def image_data(fields: ImageFields, drawn: Drawn) -> dict[str, Any]:
    """One image of an answer, with what it takes to draw it again."""
    quality = QUALITY if fields.output_compression is None else fields.output_compression
    text = base64.b64encode(drawn.encoded(FORMATS[fields.form], quality)).decode()
    as_url = fields.response_format == "url"
    data = {"url": f"data:image/{fields.form};base64,{text}"} if as_url else {"b64_json": text}
    request = drawn.request
    return {
        **data, "model": request.model, "seed": request.seed, "num_inference_steps": request.steps,
        "steps_made": drawn.steps, "nfe": drawn.nfe, "guidance_scale": request.guidance, "seconds": drawn.seconds,
    }  # fmt: skip


class EventResponse(EventStream):
    """Server-sent events of images as they come: OpenAI's partial images and completed ones. It ends with its client.

    Args:
        context: of the events, which cancels what is left.
    """

    def __init__(
        self, context: AbstractAsyncContextManager[Any], events: Any, fields: ImageFields, kind: str, seconds: float
    ) -> None:
        self.fields, self.kind = fields, kind
        super().__init__(self._texts(events, seconds), context)

    async def _texts(self, events: AsyncIterator[tuple[int, Event]], seconds: float) -> AsyncIterator[str]:
        yield HEARD
        shown: dict[int, int] = {}
        try:
            async with asyncio.timeout(seconds):
                async for place, event in events:
                    if isinstance(event, Failed):
                        raise event.reason
                    if isinstance(event, Progress) and event.preview is not None:
                        number = shown[place] = shown.get(place, -1) + 1
                        content = await asyncio.to_thread(file_content, event.preview, FORMATS[self.fields.form])
                        said = {
                            "b64_json": base64.b64encode(content).decode(), "partial_image_index": number,
                            "transition": event.transition, "transitions": event.transitions,
                        }  # fmt: skip
                        yield self._event("partial_image", place, event.preview, said)
                    elif isinstance(event, Drawn):
                        said = await asyncio.to_thread(image_data, self.fields, event)
                        yield self._event("completed", place, event.image, {**said, "usage": NO_TOKENS})
        except Exception as error:
            told = refusal(error)
            if told.status == 500:  # nobody else sees it
                log.exception("a stream has failed")
            yield event_text("error", told.body)

    def _event(self, name: str, place: int, image: Any, said: dict[str, Any]) -> str:
        kind = f"{self.kind}.{name}"
        common = {
            "type": kind, "index": place, "created_at": int(time.time()), "size": f"{image.width}x{image.height}",
            "quality": "auto", "background": "opaque", "output_format": self.fields.form,
        }  # fmt: skip
        return event_text(kind, {**common, **said})


def check_content_type(request: Request, expected: str) -> None:
    """Refuse other content. What a page of another server may send without being asked first is other content."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != expected:
        raise Refusal(415, f"content type {given or 'missing'}: expected {expected}")
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise Refusal(415, f"content encoding {encoding}: expected none")


def body_of(fields: type[BaseModel], file: str | None = None) -> dict[str, Any]:
    """What OpenAPI says of a body that has these fields, and a file beside them."""
    schema = fields.model_json_schema()
    if file is not None:
        schema["properties"][file] = {"type": "string", "format": "binary"}
        schema["required"] = [*schema["required"], file]
    kind = "application/json" if file is None else "multipart/form-data"
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def answers(what: str, *statuses: int) -> dict[int | str, Any]:
    """What OpenAPI says of answers: what is asked for, or a reason why not."""
    text = {"type": "string"}
    error = {"type": "object", "properties": {"message": text, "type": text, "code": text}, "required": ["message"]}
    reason = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    content = {"application/json": {"schema": reason}}
    refused: dict[int | str, Any] = {
        each: {"description": CODES[each], "content": content} for each in statuses or REFUSED
    }
    return {200: {"description": what}, **refused}


DRAWN = answers("images, or with `stream` the events of their making")
DRAWN[200]["content"] = {"text/event-stream": {"schema": {}}}
