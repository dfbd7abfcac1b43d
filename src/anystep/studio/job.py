"""One image on its way through the engine, and what is told of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from PIL import Image

from anystep.errors import InputError
from anystep.studio.draw import Drawn
from anystep.studio.request import ImageRequest


@dataclass(frozen=True)
class Started:
    """Drawing has begun."""


@dataclass(frozen=True)
class Progress:
    """A transition was made: its number from 1 on, of how many, and the clean-image estimate where it is shown."""

    transition: int
    transitions: int
    preview: Image.Image | None


@dataclass(frozen=True)
class Failed:
    """It will not be drawn: the reason is an `InputError`, a `TimeoutError`, a `Cancelled`, or a fault of ours."""

    reason: Exception


class Cancelled(Exception):
    """Nobody waits for the image any more."""


Event = Started | Progress | Drawn | Failed
Listener = Callable[["Job", Event], None]


@dataclass(eq=False)
class Job:
    """A request in the engine. Its last event is `Drawn` or `Failed`, and comes exactly once.

    Attributes:
        user: whose it is: users take turns.
        cost: network evaluations that it takes.
        deadline: on the clock of `time.monotonic`; None: there is none.
        listener: called with each event by the thread that draws. It must return at once.
        turn: the place in line; the lowest is next.
    """

    request: ImageRequest
    user: str = ""
    cost: int = 1
    deadline: float | None = None
    listener: Listener = lambda job, event: None
    turn: float = 0.0
    submitted: float = field(default_factory=time.monotonic)
    outcome: Drawn | Failed | None = None
    _reason: Exception | None = None
    _ending: Lock = field(default_factory=Lock)

    def cancel(self) -> None:
        """Draw it no further. One that waits is told at its turn, one that is drawn after its transition."""
        self._reason = self.given_up() or Cancelled("nobody waits for this image any more")

    def given_up(self) -> Exception | None:
        """Why nobody waits for it any more, if so; of several reasons the first, for who waits too long goes too."""
        if isinstance(self.outcome, Failed):
            return self.outcome.reason
        if self._reason is None and self.deadline is not None and time.monotonic() > self.deadline:
            self._reason = TimeoutError("the deadline of this request has passed: ask for fewer steps, or again later")
        return self._reason

    def tell(self, event: Event) -> None:
        """Pass an event on to the listener, unless the last one has been told."""
        with self._ending:
            if self.outcome is not None:
                return
            if isinstance(event, Drawn | Failed):
                self.outcome = event
        self.listener(self, event)

    def result(self) -> Drawn:
        """The image. Raises the reason where there is none."""
        if isinstance(self.outcome, Drawn):
            return self.outcome
        raise self.outcome.reason if self.outcome else InputError("this image is not drawn yet")
