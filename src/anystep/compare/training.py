"""The training of all runs of a comparison, in this process or in several at once."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from types import FrameType

import torch

from anystep.compare.experiment import ComparedRun
from anystep.errors import InputError
from anystep.training.config import Recipe
from anystep.training.train import train


def train_run(recipe: Recipe, folder: Path) -> None:
    """One run, in a process of its own or in this one; an interrupted one is resumed, a finished one is kept."""
    if (folder / "done").exists():
        return
    torch.set_num_threads(recipe.run.threads or 1)
    if train(recipe, folder)["step"] < recipe.run.steps:
        raise KeyboardInterrupt
    (folder / "done").touch()


_stopped: Event | None = None  # of a process of several: set where no further run shall begin


def _begin_process(stopped: Event) -> None:
    """Let this process end when the one that started it is gone: it would hold its run folder for nobody."""
    global _stopped
    _stopped = stopped
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _unless_stopped(finish: Callable[[Recipe, Path], None], recipe: Recipe, folder: Path) -> None:
    """A pool hands out a few runs ahead of time, which nobody can take back."""
    assert _stopped is not None
    if not _stopped.is_set():
        finish(recipe, folder)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as a Ctrl-C, so that the runs in other processes are told, and save where they are."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train_all(
    runs: Sequence[ComparedRun], jobs: int, on_run: Callable[[str], None], finish: Callable[[Recipe, Path], None]
) -> None:
    """Train all runs, so many at once. Raises `InputError` that names the run that cannot be trained.

    Args:
        finish: what becomes of a run where there are several processes; one that is alone trains only.
    """
    if jobs == 1:
        for run in runs:
            with _named(run):
                train_run(run.recipe, run.folder)
            on_run(f"trained {run.name}")
        return
    context = get_context("spawn")
    stopped = context.Event()
    with _terminated_as_interrupted(), ProcessPoolExecutor(jobs, context, _begin_process, (stopped,)) as pool:
        waiting = {pool.submit(_unless_stopped, finish, run.recipe, run.folder): run for run in runs}
        try:
            for future in as_completed(waiting):
                with _named(waiting[future]):
                    future.result()
                on_run(f"trained {waiting[future].name}")
        except BaseException as error:  # what has not begun shall not begin, and what runs shall save and end
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise InputError(
                    "the process of a run was killed, perhaps for its memory: the same command goes on; fewer "
                    "--jobs take less"
                ) from None
            raise


@contextmanager
def _named(run: ComparedRun) -> Iterator[None]:
    """Whatever is wrong with a run is said with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{run.name}: {error}") from None
