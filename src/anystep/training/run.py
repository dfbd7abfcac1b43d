"""What every training run shares: its folder, log, clock, device and clean interruption."""

import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from anystep.console import is_quiet, say
from anystep.device import pick_device
from anystep.environment import environment
from anystep.errors import InputError
from anystep.files import (
    check_claim,
    check_regular,
    check_settings,
    claimed,
    finite,
    replacing,
    write_json,
    write_text,
)
from anystep.plain_yaml import read_yaml
from anystep.ranks import Ranks
from anystep.seeds import mixed
from anystep.training.checkpoint_files import checkpoint_steps, recorded
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import Recipe, RunConfig
from anystep.training.old_names import current_recipe
from anystep.training.optimizers import learning_rate
from anystep.training.recipe_files import dump
from anystep.training.section import Section
from anystep.training.trackers import tracking

# a terminal sends Ctrl-C to all processes of a launcher such as torchrun, which then passes it on to them once more
PASSED_ON = 2.0
RUN, CODEC_RUN = "training run", "codec training run"  # kinds of folders
CONFIG, METRICS = "config.yaml", "metrics.jsonl"
# what a run folder had from its first moment before folders were marked
UNMARKED = (CONFIG, "env.json", "checkpoints")
# what `files.replacing` leaves of a process that was killed
LEFT = re.compile(r"\..+\.\d+\.\d+\.part")
# what may change between the two halves of a resumed run: it changes how training is done and drawn, not what is
# learned. Where more steps move the learning rate, `schedule_changes` says so
FREE_TO_CHANGE = re.compile(
    r"run\.(steps|device|threads|log_every|checkpoint_every|sample_every|keep|keep_every|trackers|profile|compile"
    r"|accumulate|shard_size|peak_tflops)"
    r"|guard\..*|parallel|ema_snapshots|sample_prompts|sample_steps|guidance|data\.broken_limit"
    r"|model\.gradient_checkpointing"
)


def latents_path(folder: Path, place: int | str) -> Path:
    """Where a run folder keeps its data encoded, a folder a source."""
    return folder / f"latents-{place}"


def schedule_changes(before: Recipe | CodecRecipe | None, now: Recipe | CodecRecipe, step: int) -> str:
    """What another number of steps does to the schedules of a run that goes on after `step`, in words; or nothing."""
    if before is None or before.run.steps == now.run.steps:
        return ""
    old, new = (learning_rate(each.optimizer, step, each.run.steps) for each in (before, now))
    changes = [f"the learning rate goes on at {new:.3g} instead of {old:.3g}"] if old != new else []
    if isinstance(before, Recipe) and isinstance(now, Recipe):
        phases = {"plain diffusion": [each.objective.diffusion_phase for each in (before, now)]}
        if before.alignment is not None and now.alignment is not None and now.alignment.until < 1:
            phases["alignment"] = [each.alignment.until for each in (before, now) if each.alignment is not None]
        changes += [
            f"{name} ends at step {math.ceil(shares[1] * now.run.steps)} instead of "
            f"{math.ceil(shares[0] * before.run.steps)}"
            for name, shares in phases.items()
            if shares[1] and step < max(shares[0] * before.run.steps, shares[1] * now.run.steps)
        ]
    return f"run.steps {now.run.steps} instead of {before.run.steps}: {', '.join(changes)}" if changes else ""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step, so that resuming needs no generator state. Near seeds share none."""
    plain = mixed(seed) * 1_000_003 + step
    if step >= 1_000_003:  # would be a stream of the next seed
        plain = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(plain)


class Run:
    """A run folder: `config.yaml`, `env.json`, `metrics.jsonl`, `checkpoints/step-N`, `samples/`, `latents-*`.

    Entered, it is locked, and what is there is of this kind. A folder that holds the same recipe is resumed; one with a
    checkpoint of another recipe is an InputError. Of several processes the first writes; the others only read.

    Attributes:
        before: the recipe of the last checkpoint, as far as it can be read.
    """

    def __init__(self, folder: Path, recipe: Recipe | CodecRecipe, ranks: Ranks | None = None) -> None:
        self.folder, self.recipe, self.ranks = folder, recipe, ranks or Ranks.single()
        self.before: Recipe | CodecRecipe | None = None
        self._held = ExitStack()

    def __enter__(self) -> "Run":
        with ExitStack() as opening:
            opening.push(self._held)
            self.ranks.on_main(self._open)
            opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _open(self) -> None:
        folder, recipe = self.folder, self.recipe
        kind = RUN if isinstance(recipe, Recipe) else CODEC_RUN
        check_claim(folder, kind, UNMARKED)
        self._agree()  # before the folder is marked as one of this kind
        self._held.enter_context(claimed(folder, kind, UNMARKED))
        if (folder / METRICS).is_symlink():
            raise InputError(f"{str(folder / METRICS)!r} is a link: the log is not written elsewhere, remove it")
        for name in ("checkpoints", "samples"):
            (folder / name).mkdir(exist_ok=True)
        for left in [*folder.iterdir(), *(folder / "samples").iterdir()]:  # of a run that was killed
            if LEFT.fullmatch(left.name) and left.is_file():
                left.unlink()
        write_text(folder / CONFIG, dump(recipe))
        write_json(folder / "env.json", environment())
        trackers = tracking(recipe.run.trackers, folder, recipe.model_dump(mode="json"))
        self._track = self._held.enter_context(trackers)

    def _agree(self) -> None:
        """Refuse a folder whose checkpoints are of another recipe or later steps; one that holds none binds nobody."""
        path, checkpoints = self.folder / CONFIG, self.folder / "checkpoints"
        if not (steps := checkpoint_steps(checkpoints)):
            return
        if (latest := steps[-1]) > self.recipe.run.steps:
            raise InputError(
                f"run.steps {self.recipe.run.steps}: the run in {str(self.folder)!r} is at step {latest} already: "
                f"expected {latest} or more, or another --out"
            )
        problem = f"{str(path)!r} is empty"
        try:
            content = recorded(checkpoints, "recipe") or read_yaml(path, "the run's")
        except InputError as error:
            content, problem = {}, str(error)
        if not content:
            say(f"{problem}; what this run was begun with is not known, it goes on with the recipe given", True)
            return
        try:
            there, unknown = completed(content, type(self.recipe))
            with suppress(ValidationError):
                self.before = type(self.recipe).model_validate(content)
        except RecursionError:
            raise InputError(
                f"{str(checkpoints)!r}: a recipe that is nested too deeply: choose another --out"
            ) from None
        now = dict(flat(self.recipe.model_dump(mode="json")))
        remedy = "choose another --out, or the same recipe to resume"
        check_settings(self.folder, "a run that differs", there, now, FREE_TO_CHANGE.fullmatch, remedy)
        if unknown:
            say(f"this run was begun with {', '.join(unknown)}, which this version does not have: going on", True)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one object to `metrics.jsonl`, with null for what is not finite."""
        if not self.ranks.is_main:
            return
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(_line(record))
        figures = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
        self._track(record["step"], figures)

    def cut_log(self, step: int) -> None:
        """Drop what the log says of later steps: they are about to be made again; and lines that cannot be read."""
        path = self.folder / METRICS
        if not self.ranks.is_main or not path.exists():
            return
        check_regular(path)
        dropped = 0
        with path.open("rb") as log, replacing(path, durable=True) as part, part.open("w", encoding="utf-8") as kept:
            for line in log:
                if not line.endswith(b"\n"):  # of a process that was killed while writing it
                    continue
                try:
                    record = json.loads(line)
                    if record["step"] <= step:
                        kept.write(_line(record))
                except (ValueError, KeyError, TypeError, RecursionError):
                    dropped += 1
        if dropped:
            say(f"{str(path)!r}: {dropped} lines that cannot be read were dropped", error=True)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(finite(record), allow_nan=False) + "\n"


def completed(content: dict[str, Any], kind: type[Section]) -> tuple[dict[str, Any], list[str]]:
    """A recipe that some version wrote, in the form of this one: what was not there yet has its default.

    The second are keys that this version does not have. A value that it does not take stays as it is.
    """
    content, unknown = current_recipe(deepcopy(content)), list[str]()
    strange: dict[str, Any] = {}
    while True:
        try:
            return {**dict(flat(kind.model_validate(content).model_dump(mode="json"))), **strange}, unknown
        except ValidationError as error:
            found = [
                (key, value, each["type"]) for each in error.errors() for key, value in _taken(content, each["loc"])
            ]
        if not found:  # wrong as a whole: compared as it is
            return {**dict(flat(content)), **strange}, unknown
        unknown += [key for key, _, problem in found if problem == "extra_forbidden"]
        strange |= {key: value for key, value, problem in found if problem != "extra_forbidden"}


def _taken(content: dict[str, Any], where: tuple[int | str, ...]) -> list[tuple[str, Any]]:
    """Take out the deepest key on a way into a recipe; the way may go on into what has no keys."""
    path: list[str] = []
    inside: Any = content
    for part in where:
        if not (isinstance(inside, dict) and part in inside):
            break
        path.append(str(part))
        owner, inside = inside, inside[part]
    return [(".".join(path), owner.pop(path[-1]))] if path else []


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a recipe by `section.key`."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_up_device(config: RunConfig) -> torch.device:
    """Apply seed and thread settings; returns the device."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(mixed(config.seed))
    return pick_device(config.device)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and SIGHUP append to the list: a loop then finishes its step, saves and leaves.

    A second Ctrl-C means at once, unless it follows within `PASSED_ON` seconds. A second SIGTERM does not: launchers
    send it to a group and to each of its processes. SIGHUP stays ignored where it is, as under nohup. In a thread no
    signal arrives, and none is caught.
    """
    caught: list[int] = []
    since = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if number == signal.SIGINT and time.monotonic() - since > PASSED_ON:
            raise KeyboardInterrupt
        since = min(since, time.monotonic())
        caught.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if (hangup := getattr(signal, "SIGHUP", None)) and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """A bar on a terminal, a plain line at every log interval elsewhere."""

    def __init__(self, steps: int, start: int, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._start, self._clock, self._steps = start, time.perf_counter(), steps
        console = Console()
        self._plain = not quiet and not console.is_terminal
        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
            console=console, disable=quiet or is_quiet() or not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=steps, completed=start)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._bar.stop()

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """After step `step`; `values` are shown when given."""
        rate, text = (step - self._start) / max(1e-9, time.perf_counter() - self._clock), None
        if values is not None:
            text = "  ".join([*(f"{name} {value:.4g}" for name, value in values.items()), f"{rate:.2f} it/s"])
        with suppress(OSError):  # of a terminal that is gone
            self._bar.update(self._task, completed=step, description=text)
        if text is not None and self._plain:
            left = (self._steps - step) / max(rate, 1e-9)
            say(f"{step}/{self._steps}  {text}  {left / 60:.1f} min left")


@contextmanager
def profiling(steps: int, folder: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """To be called after every step; the first `steps` after one of warm-up go into a trace, a file a process."""
    if not steps:
        yield lambda: None
        return
    from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    trace = tensorboard_trace_handler(str(folder), f"rank-{ranks.rank}")
    with profile(
        activities=kinds, schedule=schedule(wait=0, warmup=1, active=steps, repeat=1), on_trace_ready=trace
    ) as on:
        yield on.step
