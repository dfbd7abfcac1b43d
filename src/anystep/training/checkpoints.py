"""Checkpoints: written beside, verified, renamed; sharded, and read back on any number of processes.

A checkpoint is a folder `step-N` of `torch.distributed.checkpoint`, in which every process writes its own shards, and
`manifest.json`, which names every file with its size and digest and holds what is not a tensor. It has its name only
once it is whole.
"""

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from anystep.console import say
from anystep.environment import environment
from anystep.errors import InputError
from anystep.files import write_json
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import (
    MANIFEST,
    STEP,
    Damaged,
    cause_of,
    checkpoint_steps,
    differing_tensors,
    digest,
    load_tensors,
    quiet,
    readable_manifests,
    step_folder,
    verified,
)
from anystep.training.section import Section
from anystep.training.trainer_state import TrainingTensors

# that there is one process only is known; a thread says it, so that no block around the call could silence it
warnings.filterwarnings("ignore", message="torch.distributed is disabled")
PART = re.compile(r"\.step-\d{8,18}\.part")


def is_kept(step: int, keep_every: int | Sequence[int]) -> bool:
    """Whether the checkpoint of a step is made and kept for good: at multiples of a number, or at each of several."""
    return step in keep_every if isinstance(keep_every, Sequence) else keep_every > 0 and step % keep_every == 0


class Checkpoints:
    """Those of one run.

    Args:
        folder: of the checkpoints.
        ranks: the processes that save and load together.
        keep: how many of the newest to keep; None keeps all. The newest whose manifest does not say `diverged` is kept
            whatever it is.
        keep_every: which are kept for good, as `is_kept` says.
        recipe: kept in every manifest.
        what: they are called in messages.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        keep: int | None = 2,
        keep_every: int | Sequence[int] = 0,
        recipe: Section | None = None,
        what: str = "checkpoint",
    ) -> None:
        self.folder, self.ranks, self.keep, self.keep_every, self.what = folder, ranks, keep, keep_every, what
        self._recipe = {} if recipe is None else {"recipe": recipe.model_dump(mode="json")}
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

    def save(self, step: int, tensors: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Copy tensors by name and write them while training goes on; the one before is finished first.

        Args:
            manifest: plain values to keep with the tensors, such as the position in the data.
        """
        self.finish()
        part = self._part(step)

        def make() -> None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

        self.ranks.on_main(make)
        with quiet():
            future: Any = dcp.async_save(
                {**tensors, STEP: torch.tensor(step)}, checkpoint_id=part, no_dist=self._group is None,
                process_group=self._group,
            )  # fmt: skip
        self._saving = step, {**manifest, "step": step, **self._recipe, "versions": environment()}, future

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
        step, manifest, future = self._saving
        ranks = self.ranks if together else Ranks.single()
        self._saving, part, problem, digests = None, self._part(step), "", {}
        try:
            future.result()  # once it is there, all processes have written theirs
            if together or self.ranks.is_main:
                digests = {path.name: digest(path) for path in sorted(part.iterdir())[ranks.rank :: ranks.count]}
        except (Exception, CheckpointException) as error:  # the latter is no Exception, and wraps those of all ranks
            problem = cause_of(error)
        gathered = ranks.all_gather_object((problem, digests))
        problems = [each for each, _ in gathered if each]
        if self.ranks.is_main and problems:
            shutil.rmtree(part, ignore_errors=True)
        elif self.ranks.is_main:
            try:
                files = {name: found for _, some in gathered for name, found in sorted(some.items())}
                write_json(part / MANIFEST, {**manifest, "files": files})
                self._name(part, step)
            except OSError as error:
                problems = [str(error)]
        problems = ranks.all_gather_object(problems)[0]
        if problems:
            raise InputError(f"the {self.what} of step {step} could not be written: {problems[0]}")

    def _name(self, part: Path, step: int) -> None:
        """Give a whole checkpoint its name, and drop old ones."""
        shutil.rmtree(step_folder(self.folder, step), ignore_errors=True)
        part.replace(step_folder(self.folder, step))
        if self.keep is None:
            return
        kept = [old for old in self.steps() if not is_kept(old, self.keep_every)]
        newest_good = next((old for old, found in readable_manifests(self.folder) if not found.get("diverged")), None)
        for old in set(kept[: -self.keep]) - {newest_good}:
            shutil.rmtree(step_folder(self.folder, old))

    def cut(self, step: int) -> None:
        """Drop those of later steps, which are about to be made again."""
        if self.ranks.is_main:
            for later in self.steps():
                if later > step:
                    shutil.rmtree(step_folder(self.folder, later))

    def load(self, state: TrainingTensors) -> dict[str, Any] | None:
        """Read the newest whole checkpoint into `state`, and return its manifest; None where none was ever made.

        A damaged one is named and put aside, where neither an export nor the count of those to keep takes it for the
        newest, and the one before is used.

        Raises:
            InputError: all are damaged; or one is of another architecture, or holds what no checkpoint does.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.ranks.all_gather_object(self.steps())[0]):
            folder = step_folder(self.folder, step)
            try:
                manifest, metadata = self._verified(folder, step)
            except Damaged as error:
                damaged[step] = f"checkpoint {folder.name} is damaged ({error})"
                continue
            if self.ranks.is_main:
                for number, what in damaged.items():
                    aside = self._put_aside(number)
                    say(f"{what}, going on from {folder.name}; it is kept as {aside.name}", error=True)
                if versions := _other_versions(manifest):
                    say(
                        f"checkpoint {folder.name} was made with {versions}: numbers may come out otherwise", error=True
                    )
            self._read(folder, metadata, state)
            return manifest
        if damaged:
            raise InputError(
                f"{next(iter(damaged.values()))}, and no other is whole: nothing was changed; to begin anew choose "
                f"another --out, or remove {str(self.folder)!r}"
            )
        return None

    def _put_aside(self, step: int) -> Path:
        aside = self.folder / f"damaged-{step_folder(self.folder, step).name}"
        shutil.rmtree(aside, ignore_errors=True)
        return step_folder(self.folder, step).replace(aside)

    def _read(self, folder: Path, metadata: Metadata, state: TrainingTensors) -> None:
        tensors = state.state_dict()
        self._check_architecture(folder, metadata, tensors["network"])
        try:
            load_tensors(tensors, folder, metadata, self._group)
            state.load_state_dict(tensors)
        except (Exception, CheckpointException) as error:
            raise InputError(f"checkpoint {str(folder)!r} does not go with this run: {cause_of(error)}") from None

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

    def _verified(self, folder: Path, step: int) -> tuple[dict[str, Any], Metadata]:
        """`checkpoint_files.verified`; what is wrong in one process is raised in all, damage before anything else."""
        problem: Damaged | InputError | None = None
        try:
            found = verified(folder, step, self.ranks)
        except (Damaged, InputError) as error:
            problem = error
        except OSError as error:
            problem = Damaged(str(error))
        problems = [each for each in self.ranks.all_gather_object(problem) if each is not None]
        if problems:
            raise min(problems, key=lambda each: not isinstance(each, Damaged))
        return found

    def _part(self, step: int) -> Path:
        return self.folder / f".step-{step:08d}.part"


def _other_versions(manifest: Mapping[str, Any]) -> str:
    """The versions that a checkpoint was made with, where they are others than these."""
    there, here = manifest.get("versions"), environment()
    if not isinstance(there, dict):
        return "versions that it does not name"
    names = [name for name in ("anystep", "torch") if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} (this is {here[name]})" for name in names)
