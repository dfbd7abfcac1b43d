"""The files of a checkpoint: their names, the manifest that vouches for them, and reading them in one process alone."""

import errno
import hashlib
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Size, Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from anystep.errors import InputError
from anystep.files import read_json
from anystep.models.lora import adapter_parameters
from anystep.ranks import Ranks
from anystep.training.checkpoint_reader import METADATA, SafePlanner, SafeReader, read_metadata
from anystep.training.old_names import current_manifest
from anystep.training.trainer_state import COUNTS

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,18})")
STEP = "step"  # the tensor that says of which step the others are
MAX_STEPS = 10**12  # that a manifest may count
SHOWN = 5  # of the tensors that differ, in a message


class Damaged(Exception):
    """What is wrong with a checkpoint that was whole once."""


def checkpoint_steps(folder: Path) -> list[int]:
    """Of the checkpoints in a folder, damaged ones too, oldest first; whatever else is there is passed over."""
    names = (NAME.fullmatch(path.name) for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(name[1]) for name in names if name)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def readable_manifests(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Step and manifest, not verified, of each checkpoint whose manifest can be read, the newest first."""
    for step in reversed(checkpoint_steps(folder)):
        try:
            manifest = read_json(step_folder(folder, step) / MANIFEST)
        except InputError:
            continue
        yield step, manifest


def recorded(folder: Path, name: str) -> dict[str, Any] | None:
    """The object that the newest readable manifest holds under a name, such as `recipe`; None where there is none."""
    found = next((manifest.get(name) for _, manifest in readable_manifests(folder)), None)
    return found if isinstance(found, dict) else None


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Raises Damaged where it is not what `Checkpoints` writes, or names files that are not the folder's own."""
    try:
        manifest = current_manifest(read_json(folder / MANIFEST))
    except InputError as error:
        raise Damaged(str(error)) from None
    counts = [manifest.get(name, 0) for name in COUNTS]
    if any(type(count) is not int or not 0 <= count <= MAX_STEPS for count in counts):
        raise Damaged(f"{MANIFEST} counts what is no number")
    if manifest.get(STEP) != step:
        raise Damaged(f"{MANIFEST} is of step {manifest.get(STEP)}")
    files = manifest.get("files")
    if not isinstance(files, dict) or METADATA not in files:
        raise Damaged(f"{MANIFEST} names no files")
    for name in files:
        if Path(name).name != name:
            raise Damaged(f"{MANIFEST} names {name!r}, which is not in the folder")
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise Damaged(f"{name} is a link or no file")
    return manifest


def verified(folder: Path, step: int, ranks: Ranks) -> tuple[dict[str, Any], Metadata]:
    """The manifest of a checkpoint's folder and what is in its files, of which each process looks at its share.

    Raises:
        Damaged, OSError: a file is not what the manifest says.
        InputError: it holds what no checkpoint does.
    """
    manifest = read_manifest(folder, step)
    for name, expected in sorted(manifest["files"].items())[ranks.rank :: ranks.count]:
        if digest(folder / name) != expected:
            raise Damaged(f"{name} is not what {MANIFEST} says")
    metadata = read_metadata(folder, manifest["files"])
    check_step(folder, metadata, manifest)
    return manifest, metadata


def check_step(folder: Path, metadata: Metadata, manifest: Mapping[str, Any]) -> None:
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
        load_tensors(counts, folder, metadata)
        found = max(int(count) for count in counts.values())
    except (Exception, CheckpointException) as error:
        raise Damaged(f"its tensors cannot be read: {cause_of(error)}") from None
    step = manifest[STEP]
    skipping = names != [STEP] and (manifest.get("skipped") or manifest.get("rollbacks"))
    if found > step or (found != step and not skipping):
        raise Damaged(f"its tensors are of step {found}")


def load_tensors(
    tensors: dict[str, Any], folder: Path, metadata: Metadata, group: dist.ProcessGroup | None = None
) -> None:
    """Read into these tensors, by this process alone or by a group, without running what is in the files."""
    with quiet():
        dcp.load(
            tensors, storage_reader=SafeReader(folder, metadata), planner=SafePlanner(), no_dist=group is None,
            process_group=group,
        )  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Around calls of the library: it says that there is one process only, and makes an error of a Ctrl-C."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CheckpointException as error:
            if any(isinstance(cause, KeyboardInterrupt) for cause, _ in error.failures.values()):
                raise KeyboardInterrupt from None
            raise


def cause_of(error: BaseException) -> str:
    """What an error says in one line, of those of all processes the first."""
    cause = getattr(error, "failures", {0: (error,)})
    first = next(iter(cause.values()))[0]
    return (str(first).splitlines() or [type(first).__name__])[0]


def differing_tensors(there: Mapping[str, Tensor | Size], here: Mapping[str, Tensor | Size]) -> str:
    """Of two networks' tensors, or their sizes, by name: which differ, in words; empty where none does."""
    first, second = (
        {name: tuple(each.shape if isinstance(each, Tensor) else each) for name, each in network.items()}
        for network in (there, here)
    )
    different = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    found = [
        f"{name} ({first.get(name, 'none')} there and {second.get(name, 'none')} here)" for name in different[:SHOWN]
    ]
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(found) + more


def read_average(folder: Path, network: nn.Module, place: int = 0, step: int | None = None) -> int:
    """Read an average from the shards of a checkpoint, the newest where `step` is None, as `read_saved` does.

    Of a network with an adapter, it is that of the adapter.

    Returns its step.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise InputError(f"{folder}: no checkpoint to export")
    step = steps[-1] if step is None else step
    adapter = {name: weight.detach() for name, weight in adapter_parameters(network).items()}
    read_saved(folder, step, {f"ema-{place}": adapter or network.state_dict()})
    return step


def read_saved(folder: Path, step: int, tensors: dict[str, Any], what: str = "checkpoint") -> dict[str, Any]:
    """Read what `Checkpoints` saved at a step into these tensors, in this process alone, its files verified first.

    Returns its manifest.

    Raises:
        InputError: it is damaged, or does not hold these tensors.
    """
    saved = step_folder(folder, step)
    try:
        manifest, metadata = verified(saved, step, Ranks.single())
        load_tensors(tensors, saved, metadata)
    except InputError:
        raise
    except (Exception, CheckpointException) as error:
        raise InputError(f"{what} {str(saved)!r} is damaged, or of another network: {cause_of(error)}") from None
    return manifest


def digest(path: Path) -> list[Any]:
    """Size and BLAKE2 digest of a file. Raises OSError for what is no regular file: a FIFO would be waited for."""
    if not path.is_file():
        raise OSError(errno.ENOENT, "no such regular file", str(path))
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()]
