"""Checkpoints: written beside, verified, renamed; sharded, and read back on any number of processes.

A checkpoint is a folder `step-N` of `torch.distributed.checkpoint`, in which every process writes its own shards, and
`manifest.json`, which names every file with its size and digest and holds what is not a tensor. It has its name only
once it is whole.
"""

import errno
import hashlib
import re
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Size, Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from anystep.console import say
from anystep.environment import environment
from anystep.errors import InputError
from anystep.files import read_json, write_json
from anystep.ranks import Ranks
from anystep.training.checkpoint_reader import METADATA, SafePlanner, SafeReader, read_metadata

# that there is one process only is known; a thread says it, so that no block around the call could silence it
warnings.filterwarnings("ignore", message="torch.distributed is disabled")
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,18})")
PART = re.compile(r"\.step-\d{8,18}\.part")
COUNT = re.compile(r"optimizer\.state\..+\.step")
STEP = "step"  # the tensor that says of which step the others are
COUNTS = (STEP, "ahead", "skipped", "skipped_in_a_row", "spikes", "rollbacks")  # what a manifest may count
MOST_STEPS = 10**12  # that a manifest may count
SHOWN = 5  # of the tensors that differ, in a message


class TrainingState:
    """The tensors of a run: network, averages and optimizers, sharded or not, by the names of the plain network.

    Args:
        normaliser, beside: what the loss has learned of residuals, whole in every process, and its own optimizers.
    """

    def __init__(
        self,
        network: nn.Module,
        averages: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        normaliser: nn.Module | None = None,
        beside: Sequence[Optimizer] = (),
    ) -> None:
        self.network, self.averages, self.optimizers = network, averages, optimizers
        self.normaliser, self.beside = normaliser, beside

    def state_dict(self) -> dict[str, Any]:
        network, optimizer = get_state_dict(self.network, self.optimizers)
        state = {"network": network, "optimizer": optimizer}
        state |= {f"ema-{place}": get_model_state_dict(each) for place, each in enumerate(self.averages)}
        if self.normaliser is not None:
            state["normaliser"] = get_model_state_dict(self.normaliser)
        if self.normaliser is not None and self.beside:
            state["normaliser-optimizer"] = get_optimizer_state_dict(self.normaliser, self.beside)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        set_state_dict(
            self.network, self.optimizers, model_state_dict=state["network"], optim_state_dict=state["optimizer"]
        )
        for place, each in enumerate(self.averages):
            set_model_state_dict(each, state[f"ema-{place}"])
        if self.normaliser is not None:
            set_model_state_dict(self.normaliser, state["normaliser"])
        if self.normaliser is not None and self.beside:
            set_optimizer_state_dict(self.normaliser, self.beside, state["normaliser-optimizer"])


@runtime_checkable
class Tensors(Protocol):
    """What can be saved: tensors by name, of a run or of a part of it."""

    def state_dict(self) -> dict[str, Any]: ...


class Damaged(Exception):
    """What is wrong with a checkpoint that was whole once."""


class Checkpoints:
    """Those of one run.

    Args:
        folder: of the checkpoints.
        ranks: the processes that save and load together.
        keep: how many of the newest to keep; None keeps all. The newest whose facts do not say `diverged` is kept
            whatever it is.
        keep_every: checkpoints at multiples of this step are kept for good; 0 keeps none.
        recipe: kept in every manifest.
        what: they are called in messages.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        keep: int | None = 2,
        keep_every: int = 0,
        recipe: Mapping[str, Any] | None = None,
        what: str = "checkpoint",
    ) -> None:
        self.folder, self.ranks, self.keep, self.keep_every, self.what = folder, ranks, keep, keep_every, what
        self._recipe = {} if recipe is None else {"recipe": dict(recipe)}
        self._saving: tuple[int, dict[str, Any], Future[Any]] | None = None
        # a group of its own: it talks while training talks
        self._group = dist.new_group(backend="gloo") if ranks.count > 1 else None
        if ranks.is_main and folder.exists():
            for left in folder.iterdir():  # of a run that was killed while saving
                if PART.fullmatch(left.name) and left.is_dir():
                    shutil.rmtree(left)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish what is being saved, whatever ended the block; an error of that does not hide the one before."""
        if kind is None:
            self.finish()
            return
        try:
            self.finish(together=False)
        except InputError as error:
            if self.ranks.is_main:
                say(str(error), error=True)

    def steps(self) -> list[int]:
        """Of the whole checkpoints, oldest first."""
        return checkpoint_steps(self.folder)

    def save(self, step: int, state: Tensors, facts: Mapping[str, Any]) -> None:
        """Copy the tensors and write them while training goes on; the one before is finished first.

        Args:
            facts: plain values to keep with them, such as the position in the data.
        """
        self.finish()
        part = self._part(step)

        def make() -> None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

        self.ranks.on_main(make)
        with _quiet():
            future: Any = dcp.async_save(
                {**state.state_dict(), STEP: torch.tensor(step)}, checkpoint_id=part, no_dist=self.ranks.count == 1,
                process_group=self._group,
            )  # fmt: skip
        self._saving = step, {**facts, "step": step, **self._recipe, "versions": environment()}, future

    def finish(self, together: bool = True) -> None:
        """Wait for the checkpoint that is being written, verify it, give it its name, and drop old ones.

        Args:
            together: whether all processes do so; where one of them ends with an error the others do not come, and the
                first one looks at all files itself.

        Raises:
            InputError: it could not be written, for want of space for example; those before are as they were.
        """
        if self._saving is None:
            return
        step, facts, future = self._saving
        ranks = self.ranks if together else Ranks.single()
        self._saving, part, problem, mine = None, self._part(step), "", {}
        try:
            future.result()  # once it is there, all processes have written theirs
            if together or self.ranks.is_main:
                mine = {path.name: digest(path) for path in _share(part, ranks)}
        except (Exception, CheckpointException) as error:  # the latter is no Exception, and wraps those of all ranks
            problem = _cause(error)
        told = ranks.all_gather_object((problem, mine))
        problems = [each for each, _ in told if each]

        def name() -> None:
            if problems:
                shutil.rmtree(part, ignore_errors=True)
                return
            files = {name: found for _, some in told for name, found in sorted(some.items())}
            write_json(part / MANIFEST, {**facts, "files": files})
            shutil.rmtree(self._whole(step), ignore_errors=True)
            part.replace(self._whole(step))
            if self.keep is None:
                return
            kept = [old for old in self.steps() if not (self.keep_every and old % self.keep_every == 0)]
            for old in set(kept[: -self.keep]) - {self._newest_good()}:
                shutil.rmtree(self._whole(old))

        if self.ranks.is_main:
            try:
                name()
            except OSError as error:
                problems.append(str(error))
        problems = ranks.all_gather_object(problems)[0]
        if problems:
            raise InputError(f"the {self.what} of step {step} could not be written: {problems[0]}")

    def cut(self, step: int) -> None:
        """Drop those of later steps, which are about to be made again."""
        if self.ranks.is_main:
            for later in self.steps():
                if later > step:
                    shutil.rmtree(self._whole(later))

    def _newest_good(self) -> int | None:
        for step in reversed(self.steps()):
            try:
                if not read_json(self._whole(step) / MANIFEST).get("diverged"):
                    return step
            except InputError:
                continue
        return None

    def load(self, state: TrainingState) -> dict[str, Any] | None:
        """Read the newest whole checkpoint into `state`, and return its facts; None where none was ever made.

        A damaged one is named and the one before used.

        Raises:
            InputError: all are damaged; or one is of another architecture, or holds what no checkpoint does.
        """
        damaged: list[str] = []
        for step in reversed(self.ranks.all_gather_object(self.steps())[0]):
            folder = self._whole(step)
            found = self._verified(folder, step)
            if isinstance(found, str):
                damaged.append(f"checkpoint {folder.name} is damaged ({found})")
                continue
            facts, metadata = found
            if self.ranks.is_main:
                for each in damaged:
                    say(f"{each}, going on from {folder.name}", error=True)
                if told := _other_versions(facts):
                    say(
                        f"checkpoint {folder.name} was made with {told}: the numbers may come out otherwise", error=True
                    )
            self._read(folder, metadata, state)
            return facts
        if damaged:
            raise InputError(
                f"{damaged[0]}, and no other is whole: nothing was changed; to begin anew choose another --out, or "
                f"remove {str(self.folder)!r}"
            )
        return None

    def _read(self, folder: Path, metadata: Metadata, state: TrainingState) -> None:
        tensors = state.state_dict()
        self._check_architecture(folder, metadata, tensors["network"])
        try:
            _load(tensors, folder, metadata, no_dist=self.ranks.count == 1, group=self._group)
            state.load_state_dict(tensors)
        except (Exception, CheckpointException) as error:
            raise InputError(f"checkpoint {str(folder)!r} does not go with this run: {_cause(error)}") from None

    def _check_architecture(self, folder: Path, metadata: Metadata, network: Mapping[str, Tensor]) -> None:
        """Raises InputError where the checkpoint's network has other tensors."""
        own = "network."
        there = {
            name.removeprefix(own): entry.size
            for name, entry in metadata.state_dict_metadata.items()
            if name.startswith(own) and isinstance(entry, TensorStorageMetadata)
        }
        if different := differing_tensors(there, network):
            raise InputError(
                f"checkpoint {str(folder)!r} is of another architecture, its tensors differ in {different}: choose "
                "another --out, or the model and data that it was made with"
            )

    def _verified(self, folder: Path, step: int) -> tuple[dict[str, Any], Metadata] | str:
        """The manifest and what is in the files, if every file is what it says; else what is wrong, in words.

        Each process looks at its share of the files.
        """
        problem, refusal, found = "", "", None
        try:
            facts = _read_manifest(folder, step)
            for place, (name, expected) in enumerate(sorted(facts["files"].items())):
                if place % self.ranks.count == self.ranks.rank and digest(folder / name) != expected:
                    raise Damaged(f"{name} is not what {MANIFEST} says")
            metadata = read_metadata(folder, facts["files"])
            _check_step(folder, metadata, facts)
            found = facts, metadata
        except (Damaged, OSError) as error:
            problem = str(error)
        except InputError as error:
            refusal = str(error)
        told = self.ranks.all_gather_object((problem, refusal))
        if problems := [each for each, _ in told if each]:
            return problems[0]
        if refusals := [each for _, each in told if each]:
            raise InputError(refusals[0])
        assert found is not None
        return found

    def _whole(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _part(self, step: int) -> Path:
        return self.folder / f".step-{step:08d}.part"


def checkpoint_steps(folder: Path) -> list[int]:
    """Of the checkpoints in a folder, damaged ones too, oldest first; whatever else is there is passed over."""
    names = (NAME.fullmatch(path.name) for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(name[1]) for name in names if name)


def recorded_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe that the newest manifest in `folder` holds; None where none does."""
    for step in reversed(checkpoint_steps(folder)):
        try:
            recipe = read_json(folder / f"step-{step:08d}" / MANIFEST).get("recipe")
        except InputError:
            continue
        return recipe if isinstance(recipe, dict) else None
    return None


def _read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Raises Damaged where it is not what `Checkpoints` writes, or names files that are not the folder's own."""
    try:
        facts: dict[str, Any] = read_json(folder / MANIFEST)
    except InputError as error:
        raise Damaged(str(error)) from None
    counts = [facts.get(name, 0) for name in COUNTS]
    if any(type(count) is not int or not 0 <= count <= MOST_STEPS for count in counts):
        raise Damaged(f"{MANIFEST} counts what is no number")
    if facts.get(STEP) != step:
        raise Damaged(f"{MANIFEST} is of step {facts.get(STEP)}")
    files = facts.get("files")
    if not isinstance(files, dict) or METADATA not in files:
        raise Damaged(f"{MANIFEST} names no files")
    for name in files:
        if Path(name).name != name:
            raise Damaged(f"{MANIFEST} names {name!r}, which is not in the folder")
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise Damaged(f"{name} is a link or no file")
    return facts


def _check_step(folder: Path, metadata: Metadata, facts: Mapping[str, Any]) -> None:
    """Raises Damaged where the tensors are those of another step than the manifest says."""
    entries = metadata.state_dict_metadata
    # what was saved before there was a tensor of that name has the optimizers' own counts
    names = (
        [STEP] if STEP in entries else [name for name in entries if re.fullmatch(r"optimizer\.state\..+\.step", name)]
    )
    counts = {
        name: torch.zeros(entry.size, dtype=entry.properties.dtype)
        for name in names
        if isinstance(entry := entries[name], TensorStorageMetadata) and entry.size.numel() == 1
    }
    if not counts:
        return
    try:
        _load(counts, folder, metadata, no_dist=True)
        told = max(int(count) for count in counts.values())
    except (Exception, CheckpointException) as error:
        raise Damaged(f"its tensors cannot be read: {_cause(error)}") from None
    step = facts[STEP]
    skipping = names != [STEP] and (facts.get("skipped") or facts.get("rollbacks"))
    if told > step or (told != step and not skipping):
        raise Damaged(f"its tensors are of step {told}")


def _load(
    tensors: dict[str, Any], folder: Path, metadata: Metadata, no_dist: bool, group: dist.ProcessGroup | None = None
) -> None:
    """Read into these tensors, without running what is in the files."""
    with _quiet():
        dcp.load(
            tensors, storage_reader=SafeReader(folder, metadata), planner=SafePlanner(), no_dist=no_dist,
            process_group=group,
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Around calls of the library: it says that there is one process only, and makes an error of a Ctrl-C."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CheckpointException as error:
            if any(isinstance(cause, KeyboardInterrupt) for cause, _ in error.failures.values()):
                raise KeyboardInterrupt from None
            raise


def _cause(error: BaseException) -> str:
    """What an error says in one line, of those of all processes the first."""
    cause = getattr(error, "failures", {0: (error,)})
    first = next(iter(cause.values()))[0]
    return (str(first).splitlines() or [type(first).__name__])[0]


def _share(part: Path, ranks: Ranks) -> list[Path]:
    """The files that this process looks after."""
    return [
        path
        for place, path in enumerate(sorted(part.iterdir()))
        if place % ranks.count == ranks.rank and path.name != MANIFEST
    ]


def _other_versions(facts: Mapping[str, Any]) -> str:
    """The versions that a checkpoint was made with, where they are others than these."""
    there, here = facts.get("versions"), environment()
    if not isinstance(there, dict):
        return "versions that it does not name"
    names = [name for name in ("anystep", "torch") if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} (this is {here[name]})" for name in names)


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


def read_average(folder: Path, network: nn.Module, place: int = 0, step: int | None = None) -> int:
    """Read an average of a checkpoint in `folder` from its shards into a plain network, in this process alone.

    Args:
        step: of the checkpoint; the newest where None.

    Returns its step.

    Raises:
        InputError: no whole checkpoint.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise InputError(f"{folder}: no checkpoint to export")
    step = steps[-1] if step is None else step
    chosen = folder / f"step-{step:08d}"
    try:
        metadata = read_metadata(chosen, _read_manifest(chosen, step)["files"])
        _load({f"ema-{place}": network.state_dict()}, chosen, metadata, no_dist=True)
    except InputError:
        raise
    except (Exception, CheckpointException) as error:
        raise InputError(f"checkpoint {str(chosen)!r} cannot be exported: {_cause(error)}") from None
    return step


def read_saved(folder: Path, step: int, tensors: dict[str, Any], what: str = "checkpoint") -> dict[str, Any]:
    """Read what `Checkpoints` saved at a step into these tensors, in this process alone, its files verified first.

    Returns the facts that were saved with it.

    Raises:
        InputError: it is damaged, or does not hold these tensors.
    """
    saved = folder / f"step-{step:08d}"
    try:
        facts = _read_manifest(saved, step)
        for name, expected in sorted(facts["files"].items()):
            if digest(saved / name) != expected:
                raise Damaged(f"{name} is not what {MANIFEST} says")
        metadata = read_metadata(saved, facts["files"])
        _check_step(saved, metadata, facts)
        _load(tensors, saved, metadata, no_dist=True)
    except InputError:
        raise
    except (Exception, CheckpointException) as error:
        raise InputError(f"{what} {str(saved)!r} is damaged, or of another network: {_cause(error)}") from None
    return facts


def digest(path: Path) -> list[Any]:
    """Size and BLAKE2 digest of a file. Raises OSError for what is no regular file: a FIFO would be waited for."""
    if not path.is_file():
        raise OSError(errno.ENOENT, "no such regular file", str(path))
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()]
