"""Where figures go beside `metrics.jsonl`: trackers by name, each imported only where it is asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from anystep.errors import InputError


@runtime_checkable
class Tracker(Protocol):
    """Begun by its constructor, with the run's folder and configuration."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """The run keeps its id in the folder, so that a resumed one goes on in the same chart."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        known = folder / "wandb-id.txt"
        if not known.exists():
            known.write_text(wandb.util.generate_id(), "utf-8")
        self._run = wandb.init(
            project="anystep", dir=str(folder), id=known.read_text("utf-8"), resume="allow", config=dict(config)
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(project="anystep", name=folder.resolve().name, config=dict(config), resume="allow")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._trackio.log({**figures, "step": step})

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def open_tracker(name: str, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """Raises InputError where its package is not installed."""
    try:
        return TRACKERS[name](folder, config)
    except ImportError:
        raise InputError(f"run.trackers {name}: pip install {name}") from None
