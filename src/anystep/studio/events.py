"""What the engine's threads tell, for coroutines."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from anystep.studio.draw import Drawn
from anystep.studio.engine import Engine
from anystep.studio.job import Event, Failed, Job
from anystep.studio.request import ImageRequest


@asynccontextmanager
async def submitted(
    engine: Engine, requests: Sequence[ImageRequest], user: str = "", deadline: float | None = None
) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
    """The events of images, each with the image's place, until all are done; whoever leaves before cancels the rest.

    Raises:
        InputError, QueueFull, Draining: as `Engine.submit` does, before there are any.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[Job, Event]]()

    def listener(job: Job, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is there to be told
            loop.call_soon_threadsafe(queue.put_nowait, (job, event))

    jobs = engine.submit(requests, listener, user, deadline)

    async def events() -> AsyncIterator[tuple[int, Event]]:
        left = len(jobs)
        while left:
            job, event = await queue.get()
            left -= isinstance(event, Drawn | Failed)
            yield jobs.index(job), event

    try:
        yield events()
    finally:
        if any(job.outcome is None for job in jobs):
            engine.cancel(jobs)
