"""The routes of the training view: what there is, a run as it goes on, its sample grids, and comparisons."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, JSONResponse, Response

from anystep.errors import InputError
from anystep.studio.answers import Refusal
from anystep.studio.event_stream import HEARD, EventStream, event_text
from anystep.studio.page_routes import HEADERS
from anystep.studio.runs import Found, RunLog, Runs, comparison, grids

EVERY = 1.0  # seconds between looks at a log


def runs_router(runs: Runs, is_ending: Callable[[], bool] = lambda: False) -> APIRouter:
    """The routes over what is watched; once the server is ending, it is followed no further."""
    router = APIRouter(prefix="/studio", include_in_schema=False)

    def named(name: str, kind: str) -> Found:
        try:
            return runs.named(name, kind)
        except InputError as error:
            raise Refusal(404, str(error)) from None

    @router.get("/runs")
    async def found() -> Response:
        each = await asyncio.to_thread(runs.found)
        now = time.time()
        told = [{"name": one.name, "kind": one.kind, "seconds_since": now - one.written} for one in each]
        return JSONResponse(told, headers=HEADERS)

    @router.get("/run")
    async def run(name: str) -> Response:
        log = RunLog((await asyncio.to_thread(named, name, "run")).folder)
        return EventStream(following(log, is_ending))

    @router.get("/grid")
    async def grid(name: str, file: str) -> Response:
        folder = (await asyncio.to_thread(named, name, "run")).folder
        if file not in grids(folder):
            raise Refusal(404, "there is no such sample grid")
        return FileResponse(folder / "samples" / file, media_type="image/png", headers=HEADERS)

    @router.get("/comparison")
    async def compared(name: str) -> Response:
        folder = (await asyncio.to_thread(named, name, "comparison")).folder
        told: dict[str, Any] = await asyncio.to_thread(comparison, folder)
        return JSONResponse(told, headers=HEADERS)

    return router


async def following(log: RunLog, is_ending: Callable[[], bool] = lambda: False) -> AsyncIterator[str]:
    """The run as it is, and again whenever its log or its grids have grown."""
    yield HEARD
    seen: Any = None
    while not is_ending():
        try:
            await asyncio.to_thread(log.update)
            now = (len(log.records), await asyncio.to_thread(grids, log.folder))
            if now != seen:
                seen = now
                yield event_text("run", await asyncio.to_thread(log.told))
        except OSError as error:
            yield event_text("gone", {"message": str(error)})
            return
        await asyncio.sleep(EVERY)
        yield ": still here\n\n"
