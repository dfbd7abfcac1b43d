"""What the calls of a pipeline are doing: several threads may use one pipeline, each with its own settings."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import get_ident
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor

from anystep.pipelines.inputs import CLEAN, CallOptions, latents_of
from anystep.sampling import Step, StopSampling, is_guided

P = ParamSpec("P")
Drawn = TypeVar("Drawn")


@dataclass
class Call:
    """The state of one call.

    Attributes:
        guidance: scale of the next step.
        twice: whether guided steps take a second evaluation, of what is guided away from.
        steps: how many there are.
        interrupted: whether it was stopped, which may be before its first step.
    """

    guidance: float = 1.0
    twice: bool = False
    steps: int = 0
    interrupted: bool = False


def registered(draw: Callable[Concatenate[Any, P], Drawn]) -> Callable[Concatenate[Any, P], Drawn]:
    """A pipeline's method that draws, with a `Call` of its own from its beginning to its end."""

    @wraps(draw)
    def drawn(self: Any, /, *arguments: P.args, **options: P.kwargs) -> Drawn:
        with self._running(Call()):
            return draw(self, *arguments, **options)

    return drawn


class CallState:
    """The properties of a pipeline that callbacks of diffusers read and set, of the call of the thread that asks."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, Call] = {}  # those that run, by thread
        self._last = Call()

    @property
    def _call(self) -> Call:
        return self._calls.get(get_ident(), self._last)

    @property
    def interrupt(self) -> bool:
        """Whether the call of this thread was stopped. Set in a callback it stops that call, elsewhere all that run."""
        return self._call.interrupted

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        own = self._calls.get(get_ident())
        for call in [own] if own is not None else list(self._calls.values()):
            call.interrupted = bool(value)

    _interrupt = interrupt  # the name in diffusers

    @property
    def guidance_scale(self) -> float:
        """Of the step that comes next; a callback may set `_guidance_scale`."""
        return self._call.guidance

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        self._call.guidance = value

    _guidance_scale = guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the step that comes next takes a second evaluation, where it is in the guidance interval."""
        return self._call.twice and is_guided(self._call.guidance)

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that runs, or of the last one."""
        return self._call.steps

    @contextmanager
    def _running(self, call: Call) -> Iterator[None]:
        """While it lasts, the properties of this thread are those of the call."""
        before, self._calls[get_ident()] = self._calls.get(get_ident()), call
        try:
            yield
        finally:
            self._last = self._calls.pop(get_ident())
            if before is not None:  # a callback has called the pipeline
                self._calls[get_ident()] = before

    def _step_callback(
        self,
        call: Call,
        options: CallOptions,
        timesteps: list[float],
        embeds: Mapping[str, Tensor | None],
        progress: Any,
    ) -> Callable[[Step], Tensor | None]:
        """What the sampler calls after each step: it shows progress, and calls what the user gave."""

        def on_step(step: Step) -> Tensor | None:
            progress.update()
            latents: Tensor | None = None
            if options.callback is not None:
                known = {"latents": step.x, **embeds}
                tensors = {name: step.clean if name == CLEAN else known[name] for name in options.callback_tensors}
                changed = options.callback(self, step.index, timesteps[step.index], tensors)
                latents = None if changed is None else latents_of(changed, known)
            if call.interrupted:
                raise StopSampling
            return latents

        return on_step
