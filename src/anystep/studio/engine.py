"""The engine of page and service: one queue, batches of like requests, progress, cancelling, deadlines, draining."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from torch import Tensor

from anystep.bounds import nearest, shown
from anystep.errors import InputError
from anystep.pipelines.load import Model
from anystep.studio.draw import Drawn, Painter
from anystep.studio.fair_queue import FairQueue, QueueFull
from anystep.studio.job import Cancelled, Event, Failed, Job, Listener, Progress, Started
from anystep.studio.request import ImageRequest, Limits, checked

LONGEST_WAIT = 60  # seconds that anyone is told to stay away
log = logging.getLogger(__name__)


class Draining(Exception):
    """The engine takes no more requests, since it is about to end, or it has ended before one was done."""

    def __init__(self) -> None:
        super().__init__("this server is ending: ask another, or again")


class UnknownModel(InputError):
    """The name of no model that the engine has."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engine works.

    Attributes:
        batch: most images drawn together; fewer where these have more pixels than one image may have.
        window: seconds that an image waits for others to be drawn with.
        waiting: most images that may wait.
        workers: batches drawn at the same time; each takes a core of a CPU.
    """

    batch: int = 16
    window: float = 0.005
    waiting: int = 256
    workers: int = 1


class Engine:
    """Draws what is submitted, in threads of its own.

    Args:
        models: by the names that requests use; the first is the default.

    Attributes:
        on_drawn: called with the images of each batch that was drawn.
        on_event: called with every event of every job, before its listener.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        options: EngineOptions | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.painters = {name: Painter(model) for name, model in models.items()}
        self.options, self.limits = options or EngineOptions(), limits or Limits()
        self.on_drawn: Callable[[Sequence[Drawn]], None] = lambda images: None
        self.on_event: Listener = lambda job, event: None
        self._queue, self._changed = FairQueue(), Condition()
        self._idle, self._running, self._draining, self._closed = 0, list[Job](), False, False
        self._pace = 0.05  # seconds a network evaluation of one image, by what was measured last
        self._threads = [Thread(target=self._work, daemon=True, name=f"draw-{n}") for n in range(self.options.workers)]
        for thread in self._threads:
            thread.start()

    @property
    def default_model(self) -> str:
        return next(iter(self.painters))

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Images that are being drawn."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether no more is taken."""
        return self._draining

    def model(self, name: str) -> Model:
        """A model by its name. Raises `UnknownModel`, which is an `InputError`."""
        if name not in self.painters:
            raise UnknownModel(f"unknown model {shown(name)}{nearest(name, self.painters)}")
        return self.painters[name].model

    def check(self, request: ImageRequest) -> ImageRequest:
        """The request as `submit` takes it. Raises `InputError` for what cannot be drawn."""
        return checked(request, self.model(request.model), self.limits)

    def submit(
        self,
        requests: Sequence[ImageRequest],
        listener: Listener = lambda job, event: None,
        user: str = "",
        deadline: float | None = None,
    ) -> list[Job]:
        """Put images into the queue, all or none of them.

        Args:
            listener: called with each job's events, by a thread of the engine; it must return at once.
            user: whose they are. Users take turns.
            deadline: seconds from now after which nobody waits for them.

        Raises:
            InputError: an image that cannot be drawn, or more at once than may ever wait.
            QueueFull: with those that wait, more images than may wait.
            Draining: the engine is about to end.
        """
        until = None if deadline is None else time.monotonic() + deadline

        def tell(job: Job, event: Event) -> None:
            self.on_event(job, event)
            listener(job, event)

        if len(requests) > self.options.waiting:
            raise InputError(
                f"{len(requests)} images at once: expected at most {self.options.waiting}, which may wait here"
            )
        ready = [self.check(each) for each in requests]
        jobs = [Job(each, user, self._cost(each), until, tell) for each in ready]
        with self._changed:
            if self._draining:
                raise Draining
            if len(self._queue) + len(jobs) > self.options.waiting:
                raise QueueFull(len(self._queue), self.retry_after())
            self._queue.add(jobs)
            self._changed.notify_all()
        return jobs

    def retry_after(self) -> int:
        """Seconds until half of what waits will have been drawn, as far as one can tell."""
        seconds = self._queue.cost / 2 * self._pace / self.options.workers
        return min(LONGEST_WAIT, max(1, math.ceil(seconds)))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Draw these no further."""
        for job in jobs:
            job.cancel()
        with self._changed:
            self._drop_given_up()
            self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more, and wait until all that was taken is done; false where that takes longer than the timeout."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue and not self._running, timeout)

    def end(self) -> None:
        """Take no more, and fail at once whatever is not done. What is drawn now goes on until after its transition."""
        with self._changed:
            self._draining = self._closed = True
            left = [*self._queue.take_all(), *self._running]
            self._changed.notify_all()
        _tell(left, Failed(Draining()))

    def close(self) -> None:
        """`end`, and wait for the threads."""
        self.end()
        for thread in self._threads:
            thread.join()

    def _cost(self, request: ImageRequest) -> int:
        return self.model(request.model).nfe(request.steps, request.guidance)

    def _work(self) -> None:
        while batch := self._next_batch():
            begin = time.monotonic()
            self._draw(batch)
            seconds = time.monotonic() - begin
            self._pace += 0.2 * (seconds / sum(job.cost for job in batch) - self._pace)
            with self._changed:
                self._running = [job for job in self._running if job not in batch]
                self._changed.notify_all()

    def _next_batch(self) -> list[Job]:
        """What to draw now, as soon as there is something; nothing once the engine is closed."""
        with self._changed:
            self._idle += 1
            try:
                while not self._closed:
                    self._drop_given_up()
                    head = self._queue.head()
                    if head is None:
                        self._changed.wait()
                        continue
                    most = self._most(head.request)
                    alike, left = self._queue.like_head(), head.submitted + self.options.window - time.monotonic()
                    if alike < most and left > 0 and not self._draining:
                        self._changed.wait(left)
                        continue
                    # workers that are idle share what is there
                    batch = self._queue.take(min(most, math.ceil(alike / self._idle)))
                    self._running += batch
                    return batch
                return []
            finally:
                self._idle -= 1

    def _most(self, request: ImageRequest) -> int:
        """How many images like this one are drawn together: in no more memory than the largest image alone may take."""
        if not self.painters[request.model].batches:
            return 1
        width, height = request.size or (1, 1)
        return max(1, min(self.options.batch, self.limits.pixels // (width * height)))

    def _drop_given_up(self) -> None:
        """Tell those in the queue whose deadline has passed, or for which nobody waits. The lock is held."""
        for job in self._queue.take_given_up():
            job.tell(Failed(job.given_up() or Cancelled()))

    def _draw(self, batch: Sequence[Job]) -> None:
        """Draw a batch; where that fails, each of it alone, so that one image's fault is no other's."""
        painter = self.painters[batch[0].request.model]
        _tell(batch, Started())
        try:
            drawn = painter.draw([job.request for job in batch], lambda *made: self._on_transition(batch, *made))
        except Cancelled as reason:
            for job in batch:
                job.tell(Failed(job.given_up() or reason))
            return
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._draw([job])
                return
            if not isinstance(error, InputError):
                log.exception("a request could not be drawn")
            _tell(batch, Failed(error))
            return
        self.on_drawn(drawn)
        for job, image in zip(batch, drawn, strict=True):
            late = job.given_up()
            job.tell(image if late is None else Failed(late))

    def _on_transition(self, batch: Sequence[Job], index: int, transitions: int, clean: Tensor | None) -> None:
        """Tell what was made. Raises `Cancelled` where nobody waits for any image of the batch."""
        painter = self.painters[batch[0].request.model]
        with self._changed:
            self._drop_given_up()
        waiting = [(place, job) for place, job in enumerate(batch) if job.given_up() is None]
        if not waiting:
            raise Cancelled("cancelled")
        for place, job in waiting:
            preview = None
            if clean is not None and index in job.request.shown_after(transitions):
                preview = painter.decode(clean[place])
            job.tell(Progress(index + 1, transitions, preview))


def _tell(jobs: Sequence[Job], event: Event) -> None:
    for job in jobs:
        job.tell(event)
