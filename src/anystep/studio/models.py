"""The models that are served, by the names that requests call them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import torch

from anystep.bounds import shown
from anystep.device import pick_device, pick_precision
from anystep.errors import InputError
from anystep.pipelines.load import Model, load


def load_models(
    names: Sequence[str], device: str = "auto", threads: int = 1, precision: str = "auto"
) -> dict[str, Model]:
    """Models by the last parts of their names, each ready to draw at once.

    Args:
        threads: of each batch, on a CPU.
        precision: as `pick_precision` takes it.

    Raises:
        InputError: two of one name, or what `load` raises.
    """
    torch.set_num_threads(threads)
    where = pick_device(device)
    dtype = pick_precision(precision, where)
    models: dict[str, Model] = {}
    for name in names:
        short = Path(name).resolve().name if Path(name).exists() else PurePath(name).name
        if short in models:
            raise InputError(f"model {shown(name)}: another one is called {short} too; give its folder another name")
        models[short] = load(name, where, dtype)
        pipeline = models[short].pipeline
        prompt = 0 if pipeline.transformer.config.num_classes is not None else "a picture"
        models[short].generate(prompt, 1)  # the first call pays for allocations
    return models


def worker_count(models: Mapping[str, Model], threads: int) -> int:
    """Batches drawn at the same time where nobody says: on a CPU as many as there are cores for their threads."""
    on_cpu = all(model.pipeline.device.type == "cpu" for model in models.values())
    return max(1, (os.cpu_count() or 1) // threads) if on_cpu else 1
