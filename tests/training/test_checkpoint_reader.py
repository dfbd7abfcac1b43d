"""Reading checkpoints runs nothing that somebody put into them, and takes only what a checkpoint holds."""

import copyreg
import dataclasses
import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import saved_checkpoints, training_tensors
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import MANIFEST, digest, read_average
from anystep.training.checkpoints import Checkpoints


def tampered(folder: Path, name: str, content: bytes) -> None:
    """A file of the newest checkpoint replaced, and its digest in the manifest too, as who hands it over can."""
    newest = folder / "step-00000002"
    (newest / name).write_bytes(content)
    manifest = json.loads((newest / MANIFEST).read_text())
    manifest["files"][name] = digest(newest / name)
    (newest / MANIFEST).write_text(json.dumps(manifest))


class Calls:
    """Pickled, it calls something when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def metadata(folder: Path) -> Metadata:
    return pickle.loads((folder / "step-00000002" / ".metadata").read_bytes())


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["alone", "as a size", "in the planner's data", "as a key"])
def test_metadata_that_calls_something_is_refused_and_calls_nothing(tmp_path: Path, protocol: int, place: str) -> None:
    saved_checkpoints(tmp_path)
    marker = tmp_path / "called"
    call, content = Calls(os.system, f"touch {marker}"), metadata(tmp_path)
    hostile: object = content
    if place == "alone":
        hostile = call
    elif place == "as a size":
        content.state_dict_metadata["network.weight"].size = call  # type: ignore[union-attr, assignment]
    elif place == "in the planner's data":
        content.planner_data = [call]
    else:
        content.storage_data = {call: 1}
    tampered(tmp_path, ".metadata", pickle.dumps(hostile, protocol))
    for read in (
        lambda: Checkpoints(tmp_path, Ranks()).load(training_tensors(0)),
        lambda: read_average(tmp_path, nn.Linear(3, 2)),
    ):
        with pytest.raises(InputError, match=r"\.metadata' is not what a checkpoint holds, and was not read"):
            read()
    assert not marker.exists()


def replaced(content: Metadata, **changes: object) -> Metadata:
    content.storage_data = {key: dataclasses.replace(info, **changes) for key, info in content.storage_data.items()}
    return content


# what the library's own classes could be made to do: attributes set on them, other files, other pickles
HOSTILE: dict[str, Callable[[Metadata], object]] = {
    "getattr": lambda content: Calls(getattr, torch.Tensor, "numpy"),
    "an extension of the codec registry": lambda content: Calls(copyreg.add_extension, "os", "system", 1),
    "a dtype called": lambda content: Calls(torch.serialization._get_layout, "os.system"),
    "no metadata": lambda content: {"step": 1},
    "a number": lambda content: 3,
    "a negative offset": lambda content: replaced(content, offset=-1),
    "an endless length": lambda content: replaced(content, length=2**70),
    "another folder's file": lambda content: replaced(content, relative_path="../step-00000001/__0_0.distcp"),
    "an absolute path": lambda content: replaced(content, relative_path="/etc/passwd"),
    "a file that the manifest does not name": lambda content: replaced(content, relative_path="other.distcp"),
    "a transformed file": lambda content: replaced(content, transform_descriptors=["stream.zstd"]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_metadata_of_another_kind_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    saved_checkpoints(tmp_path)
    content = HOSTILE[what](metadata(tmp_path))
    tampered(tmp_path, ".metadata", pickle.dumps(content))
    with pytest.raises(InputError, match=r"\.metadata' is not what a checkpoint holds, and was not read") as caught:
        Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    assert "\n" not in str(caught.value)


def test_metadata_cannot_set_anything_on_the_classes_of_the_library(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path)
    # the class itself, then BUILD with (None, {"load": 1}): setattr(Metadata, "load", 1)
    program = b"\x80\x04\x8c\x2etorch.distributed.checkpoint.metadata\x8c\x08Metadata\x93N}\x8c\x04loadK\x01s\x86b."
    program = program.replace(b"\x8c\x2e", bytes([0x8C, len("torch.distributed.checkpoint.metadata")]))
    tampered(tmp_path, ".metadata", program)
    with pytest.raises(InputError, match="is not what a checkpoint holds"):
        Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    assert not hasattr(Metadata, "load")


@pytest.mark.parametrize("value", ["call", [1, 2, 3], "text", None, {"a": 1}])
def test_an_entry_that_is_no_tensor_is_read_as_a_plain_value_of_its_kind(tmp_path: Path, value: object) -> None:
    saved_checkpoints(tmp_path)
    marker, content = tmp_path / "called", metadata(tmp_path)
    (index,) = [each for each in content.storage_data if each.fqn == "optimizer.param_groups.0.betas"]
    info, entry = content.storage_data[index], io.BytesIO()
    torch.save(Calls(os.system, f"touch {marker}") if value == "call" else value, entry)
    data = tmp_path / "step-00000002" / info.relative_path
    before = data.read_bytes()
    content.storage_data[index] = dataclasses.replace(info, offset=len(before), length=len(entry.getvalue()))
    tampered(tmp_path, info.relative_path, before + entry.getvalue())
    tampered(tmp_path, ".metadata", pickle.dumps(content))
    with pytest.raises(InputError, match="does not go with this run") as caught:
        Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_metadata_of_single_processes_is_not_looked_for(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path)
    marker = tmp_path / "called"
    tampered(tmp_path, ".metadata", b"")
    tampered(tmp_path, "__0.metadata", pickle.dumps(Calls(os.system, f"touch {marker}")))
    with pytest.raises(InputError, match=r"\.metadata' is not what a checkpoint holds"):
        Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    assert not marker.exists()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_changed_bytes_are_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    saved_checkpoints(tmp_path, (2,))
    rng, newest, refused = random.Random(seed), tmp_path / "step-00000002", list[str]()
    whole = {path.name: path.read_bytes() for path in newest.iterdir() if path.name != MANIFEST}
    for _ in range(400 if seed else 60):
        name = rng.choice(sorted(whole))
        content = bytearray(whole[name])
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(content))
            content[place : place + rng.choice((0, 1, 1, 1, 9))] = rng.randbytes(rng.choice((0, 1, 1, 1, 5)))
        tampered(tmp_path, name, bytes(content))
        try:
            Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
        except InputError as error:
            refused.append(str(error))
        tampered(tmp_path, name, whole[name])
    assert refused
    assert "\n" not in "".join(refused)
