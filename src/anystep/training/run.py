"""What every training run shares: its folder, log, clock, device and clean interruption."""

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from anystep.device import pick_device
from anystep.environment import environment
from anystep.errors import InputError
from anystep.files import write_text
from anystep.plain_yaml import read_yaml
from anystep.training.config import CodecRecipe, OptimizerConfig, Recipe, RunConfig, dump
from anystep.training.trackers import Tracker, open_tracker

# what may change between the two halves of a resumed run without changing what is learned
FREE_TO_CHANGE = {
    "steps", "device", "threads", "log_every", "checkpoint_every", "sample_every", "keep", "keep_every", "trackers",
    "profile", "compile", "accumulate", "shard_size", "peak_tflops",
}  # fmt: skip


def latents_path(folder: Path, place: int | str) -> Path:
    """Where a run folder keeps its data encoded, a folder a source."""
    return folder / f"latents-{place}"


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to `final` of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.learning_rate * (config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step, so that resuming needs no generator state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Run:
    """A run folder: `config.yaml`, `env.json`, `metrics.jsonl`, `checkpoints/step-N`, `samples/`, `latents-*`.

    Opening it on a folder that holds the same recipe resumes; on a checkpoint of another recipe it is an InputError.
    Of several processes one is `writing`; the others only read.
    """

    def __init__(self, folder: Path, recipe: Recipe | CodecRecipe, writing: bool = True) -> None:
        self.folder, self.config, self.writing = folder, recipe.run, writing
        self._trackers: list[Tracker] = []
        if not writing:
            return
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "samples").mkdir(exist_ok=True)
            for left in [*folder.glob(".*.part"), *(folder / "samples").glob(".*.part")]:  # of a run that was killed
                if left.is_file():
                    left.unlink()
            self._agree(recipe)
            write_text(folder / "config.yaml", dump(recipe))
            write_text(folder / "env.json", json.dumps(environment(), indent=1))
        except OSError as error:
            raise InputError(f"cannot write run folder {str(folder)!r}: {error.strerror}") from None
        config = recipe.model_dump(mode="json")
        self._trackers = [open_tracker(name, folder, config) for name in self.config.trackers]

    def _agree(self, recipe: Recipe | CodecRecipe) -> None:
        path = self.folder / "config.yaml"
        if not path.exists():
            return
        changed = [
            key
            for key in differences(read_yaml(path, "the run's"), recipe.model_dump(mode="json"))
            if not (key[:4] == "run." and key[4:] in FREE_TO_CHANGE) and key[:6] != "guard." and key != "parallel"
        ]
        if changed and not self._begun():  # a run that failed before it saved anything binds nobody
            for latents in self.folder.glob(latents_path(Path(), "*").name):
                shutil.rmtree(latents)
        elif changed:
            raise InputError(
                f"{str(self.folder)!r} holds a run that differs in {', '.join(changed)}: "
                "choose another --out, or the same recipe to resume"
            )

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one object to `metrics.jsonl`."""
        if not self.writing:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        figures = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
        for tracker in self._trackers:
            tracker.log(record["step"], figures)

    def cut_log(self, step: int) -> None:
        """Drop what the log says of later steps: they are about to be made again."""
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists() and self.writing:
            lines = metrics.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(metrics, "".join(kept))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()

    def _begun(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return any((self.folder / "checkpoints").glob("step-*"))


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The keys, as `section.key`, in which two recipes differ."""
    there, here = dict(_flat(one)), dict(_flat(two))
    return sorted(key for key in {*there, *here} if there.get(key) != here.get(key))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def prepare(config: RunConfig) -> torch.device:
    """Apply seed and thread settings; returns the device."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    return pick_device(config.device)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM append to the list: a loop then finishes its step, saves and leaves.

    A second Ctrl-C means at once. A second SIGTERM does not: launchers send it to a group and to each of its processes.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
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

        self._console = Console()
        self._start, self._clock, self._steps, self._quiet = start, time.perf_counter(), steps, quiet
        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
            console=self._console, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=steps, completed=start)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Steps a second since the start, set by `update`."""
        return self._rate

    _rate = 0.0

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """After step `step`; `values` are shown when given."""
        self._rate = (step - self._start) / max(1e-9, time.perf_counter() - self._clock)
        self._bar.update(self._task, completed=step)
        if values is not None:
            text = "  ".join([*(f"{name} {value:.4g}" for name, value in values.items()), f"{self._rate:.2f} it/s"])
            self._bar.update(self._task, description=text)
            if not self._quiet and not self._console.is_terminal:
                left = (self._steps - step) / max(self._rate, 1e-9)
                print(f"{step}/{self._steps}  {text}  {left / 60:.1f} min left", flush=True)
