"""Where figures go beside `metrics.jsonl`: trackers by name, each imported only where it is asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from anystep.errors import InputError

Log = Callable[[int, Mapping[str, float]], object]  # of a step's figures


@contextmanager
def to_tensorboard(folder: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """Steps that are made again, by a run that goes on or back, replace what was shown of them."""
    from torch.utils.tensorboard import SummaryWriter

    writer, last = None, 0

    def log(step: int, figures: Mapping[str, float]) -> None:
        nonlocal writer, last
        if writer is None or step <= last:
            if writer is not None:
                writer.close()
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        last = step
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    try:
        yield log
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def to_wandb(folder: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """The run keeps its id in the folder, so that a resumed one goes on in the same chart."""
    import wandb

    known = folder / "wandb-id.txt"
    if not known.exists():
        known.write_text(wandb.util.generate_id(), "utf-8")
    with wandb.init(
        project="anystep", dir=str(folder), id=known.read_text("utf-8"), resume="allow", config=dict(config)
    ) as run:
        yield lambda step, figures: run.log(dict(figures), step=step)


@contextmanager
def to_trackio(folder: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    import trackio

    trackio.init(project="anystep", name=folder.resolve().name, config=dict(config), resume="allow")
    try:
        yield lambda step, figures: trackio.log({**figures, "step": step})
    finally:
        trackio.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], AbstractContextManager[Log]]] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
    "trackio": to_trackio,
}


@contextmanager
def tracking(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """Log to all of these.

    Raises:
        InputError: the package of one is not installed.
    """
    with ExitStack() as stack:
        logs = []
        for name in names:
            try:
                logs.append(stack.enter_context(TRACKERS[name](folder, config)))
            except ImportError:
                raise InputError(f"run.trackers {name}: pip install {name}") from None
        yield lambda step, figures: [log(step, figures) for log in logs]
