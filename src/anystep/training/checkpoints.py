"""Checkpoints: written beside, verified, renamed; sharded, and read back on any number of processes.

A checkpoint is a folder `step-N` of `torch.distributed.checkpoint`, in which every process writes its own shards, and
`manifest.json`, which names every file with its size and digest and holds what is not a tensor. It has its name only
once it is whole.
"""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Size, Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from anystep.environment import environment
from anystep.errors import InputError
from anystep.files import write_text
from anystep.ranks import Ranks

# that there is one process only is known; a thread says it, so that no block around the call could silence it
warnings.filterwarnings("ignore", message="torch.distributed is disabled")
MANIFEST = "manifest.json"
SHOWN = 5  # of the tensors that differ, in a message


class TrainingState:
    """The tensors of a run: network, averages and optimizers, sharded or not, by the names of the plain network."""

    def __init__(self, network: nn.Module, averages: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        self.network, self.averages, self.optimizers = network, averages, optimizers

    def state_dict(self) -> dict[str, Any]:
        network, optimizer = get_state_dict(self.network, self.optimizers)
        averages = {f"ema-{place}": get_model_state_dict(each) for place, each in enumerate(self.averages)}
        return {"network": network, "optimizer": optimizer, **averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        set_state_dict(
            self.network, self.optimizers, model_state_dict=state["network"], optim_state_dict=state["optimizer"]
        )
        for place, each in enumerate(self.averages):
            set_model_state_dict(each, state[f"ema-{place}"])


class Checkpoints:
    """Those of one run.

    Args:
        folder: of the checkpoints.
        ranks: the processes that save and load together.
        keep: how many of the newest to keep.
        keep_every: checkpoints at multiples of this step are kept for good; 0 keeps none.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int = 2, keep_every: int = 0) -> None:
        self.folder, self.ranks, self.keep, self.keep_every = folder, ranks, keep, keep_every
        self._saving: tuple[int, dict[str, Any], Future[Any]] | None = None
        # a group of its own: it talks while training talks
        self._group = dist.new_group(backend="gloo") if ranks.count > 1 else None
        if ranks.first and folder.exists():
            for left in folder.glob(".*.part"):  # of a run that was killed while saving
                shutil.rmtree(left)

    def steps(self) -> list[int]:
        """Of the whole checkpoints, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, step: int, state: TrainingState, facts: Mapping[str, Any]) -> None:
        """Copy the tensors and write them while training goes on; the one before is finished first.

        Args:
            facts: plain values to keep with them, such as the position in the data.
        """
        self.finish()
        part = self._part(step)
        if self.ranks.first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.ranks.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process only is known
            future: Any = dcp.async_save(
                state.state_dict(), checkpoint_id=part, no_dist=self.ranks.count == 1,
                process_group=self._group,
            )  # fmt: skip
        self._saving = step, {**facts, "step": step, "versions": environment()}, future

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, verify it, give it its name, and drop old ones.

        Raises:
            InputError: it could not be written, for want of space for example; those before are as they were.
        """
        if self._saving is None:
            return
        step, facts, future = self._saving
        self._saving, part, problem = None, self._part(step), ""
        try:
            future.result()
            mine = {path.name: digest(path) for path in self._shared(part)}
        except (Exception, CheckpointException) as error:  # the latter is no Exception, and wraps those of all ranks
            cause = getattr(error, "failures", {0: (error,)})
            problem, mine = str(next(iter(cause.values()))[0]).splitlines()[0], {}
        told = self.ranks.tell((problem, mine))
        problems = [each for each, _ in told if each]
        if problems:
            if self.ranks.first:
                shutil.rmtree(part, ignore_errors=True)
            raise InputError(f"the checkpoint of step {step} could not be written: {problems[0]}")
        if self.ranks.first:
            files = {name: found for _, some in told for name, found in sorted(some.items())}
            write_text(part / MANIFEST, json.dumps({**facts, "files": files}, indent=1))
            shutil.rmtree(self._whole(step), ignore_errors=True)
            part.replace(self._whole(step))
            kept = [old for old in self.steps() if not (self.keep_every and old % self.keep_every == 0)]
            for old in kept[: -self.keep]:
                shutil.rmtree(self._whole(old))
        self.ranks.wait()

    def load(self, state: TrainingState) -> dict[str, Any] | None:
        """Read the newest whole checkpoint into `state`, and return its facts; None without one.

        A damaged one is named and the one before used.
        """
        for step in reversed(self.ranks.tell(self.steps())[0]):
            folder = self._whole(step)
            facts = self._verified(folder)
            if facts is None:
                if self.ranks.first:
                    print(f"checkpoint {folder.name} is damaged, using the one before", file=sys.stderr)
                continue
            tensors = state.state_dict()
            self._check_architecture(folder, tensors["network"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp.load(tensors, checkpoint_id=folder, no_dist=self.ranks.count == 1, process_group=self._group)
            state.load_state_dict(tensors)
            return facts
        return None

    def _check_architecture(self, folder: Path, network: Mapping[str, Tensor]) -> None:
        """Raises InputError where the checkpoint's network has other tensors."""
        found = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        own = "network."
        there = {name.removeprefix(own): entry.size for name, entry in found.items() if name.startswith(own)}  # type: ignore[union-attr]
        if different := differing_tensors(there, network):
            raise InputError(
                f"checkpoint {str(folder)!r} is of another architecture, its tensors differ in {different}: choose "
                "another --out, or the model and data that it was made with"
            )

    def _verified(self, folder: Path) -> dict[str, Any] | None:
        """The manifest, if every file is what it says; each process looks at its share of them."""
        try:
            facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
            bad = any(
                digest(folder / name) != found
                for place, (name, found) in enumerate(sorted(facts["files"].items()))
                if place % self.ranks.count == self.ranks.rank
            )
        except (OSError, ValueError, KeyError):
            facts, bad = {}, True
        return None if self.ranks.any(bad) else facts

    def _shared(self, part: Path) -> list[Path]:
        """The files that this process looks after."""
        return [
            path
            for place, path in enumerate(sorted(part.iterdir()))
            if place % self.ranks.count == self.ranks.rank and path.name != MANIFEST
        ]

    def _whole(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _part(self, step: int) -> Path:
        return self.folder / f".step-{step:08d}.part"


def differing_tensors(there: Mapping[str, Tensor | Size], here: Mapping[str, Tensor | Size]) -> str:
    """Of two networks' tensors, or their sizes, by name: which differ, in words; empty where none does."""
    first, second = (
        {name: tuple(each.shape if isinstance(each, Tensor) else each) for name, each in network.items()}
        for network in (there, here)
    )
    different = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    told = [
        f"{name} ({first.get(name, 'none')} there and {second.get(name, 'none')} here)" for name in different[:SHOWN]
    ]
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(told) + more


def read_average(folder: Path, network: nn.Module, place: int = 0) -> int:
    """Read an average of the newest checkpoint in `folder` from its shards into a plain network, in this process alone.

    Returns its step.

    Raises:
        InputError: no whole checkpoint.
    """
    steps = [path for path in sorted(folder.glob("step-*")) if (path / MANIFEST).exists()]
    if not steps:
        raise InputError(f"{folder}: no checkpoint to export")
    state = {f"ema-{place}": network.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=steps[-1], no_dist=True)
    return int(steps[-1].name.removeprefix("step-"))


def digest(path: Path) -> list[Any]:
    """Size and BLAKE2 digest of a file."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()]
