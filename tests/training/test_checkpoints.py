"""Checkpoints appear whole, are verified, and come back as they were."""

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
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import MANIFEST, differing_tensors, digest, read_average
from anystep.training.checkpoints import Checkpoints
from anystep.training.trainer_state import TrainingTensors


def state(seed: int, trained: bool = True) -> TrainingTensors:
    """A small network that has made a step, its average and its optimizer."""
    torch.manual_seed(seed)
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    if trained:
        network(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    return TrainingTensors(network, [average], [optimizer])


def flat(content: object) -> dict[str, object]:
    if not isinstance(content, dict):
        return {"": content}
    return {f"{key}.{name}": value for key, part in content.items() for name, value in flat(part).items()}


def same(one: TrainingTensors, two: TrainingTensors) -> bool:
    left, right = flat(one.state_dict()), flat(two.state_dict())
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]  # type: ignore[arg-type]
        for name, value in left.items()
    )


def saved(folder: Path, steps: tuple[int, ...] = (1, 2), **options: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, Ranks(), **options)
    for step in steps:
        checkpoints.save(step, state(step), {"data_offset": step})
    checkpoints.finish()
    return checkpoints


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved(tmp_path)
    other = state(9, trained=False)
    facts = Checkpoints(tmp_path, Ranks()).load(other)
    assert facts is not None
    assert (facts["step"], facts["data_offset"]) == (2, 2)
    assert same(other, state(2))


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", Ranks()).load(state(0)) is None


def test_a_saved_state_does_not_follow_the_weights(tmp_path: Path) -> None:
    checkpoints, moving = Checkpoints(tmp_path, Ranks()), state(3)
    checkpoints.save(1, moving, {})
    with torch.no_grad():
        for parameter in moving.network.parameters():
            parameter.add_(1)
    checkpoints.finish()
    back = state(4)
    checkpoints.load(back)
    assert same(back, state(3))


def test_the_newest_are_kept_and_those_at_multiples(tmp_path: Path) -> None:
    assert saved(tmp_path, (1, 2, 3, 4, 5, 6, 7), keep=2, keep_every=3).steps() == [3, 5, 6, 7]
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "bad manifest", "lost file"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = saved(tmp_path)
    newest = tmp_path / "step-00000002"
    data, manifest = next(newest.glob("*.distcp")), newest / MANIFEST
    content = data.read_bytes()
    if damage == "truncated":
        data.write_bytes(content[:-10])
    elif damage == "flipped":
        data.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "bad manifest":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        data.unlink()
    back = state(5)
    facts = checkpoints.load(back)
    assert facts is not None
    assert facts["step"] == 1
    assert same(back, state(1))
    said = capsys.readouterr().err
    assert "step-00000002 is damaged" in said
    assert "going on from step-00000001" in said


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    (tmp_path / ".step-00000002.part").mkdir()
    assert Checkpoints(tmp_path, Ranks()).steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_failed_save_leaves_the_others_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    # the last thing the writer does is to give its metadata file its name
    monkeypatch.setattr(Path, "rename", full)
    checkpoints.save(3, state(3), {})
    with pytest.raises(InputError, match=r"checkpoint of step 3 could not be written: .*No space left on device"):
        checkpoints.finish()
    assert checkpoints.steps() == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_another_architecture_is_refused_with_what_differs(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    network = nn.Sequential(nn.Linear(3, 2))
    other = TrainingTensors(network, [], [torch.optim.AdamW(network.parameters())])
    with pytest.raises(InputError, match="another architecture") as caught:
        checkpoints.load(other)
    assert "0.weight (none there and (2, 3) here), bias ((2,) there and none here)" in str(caught.value)
    assert differing_tensors(network.state_dict(), network.state_dict()) == ""
    many = {str(number): torch.zeros(number) for number in range(8)}
    assert differing_tensors(many, {}).endswith("4 ((4,) there and none here) and 3 more")


def test_an_average_is_read_into_a_plain_network(tmp_path: Path) -> None:
    saved(tmp_path)
    network = nn.Linear(3, 2)
    assert read_average(tmp_path, network) == 2
    assert all(
        torch.equal(one, two) for one, two in zip(network.parameters(), state(2).averages[0].parameters(), strict=True)
    )
    with pytest.raises(InputError, match="no checkpoint to export"):
        read_average(tmp_path / "none", network)


def test_the_manifest_says_what_wrote_it(tmp_path: Path) -> None:
    saved(tmp_path)
    manifest = json.loads((tmp_path / "step-00000002" / MANIFEST).read_text())
    assert {"step", "data_offset", "versions", "files"} <= manifest.keys()
    assert set(manifest["files"]) == {path.name for path in (tmp_path / "step-00000002").iterdir()} - {MANIFEST}


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
    saved(tmp_path)
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
        lambda: Checkpoints(tmp_path, Ranks()).load(state(0)),
        lambda: read_average(tmp_path, nn.Linear(3, 2)),
    ):
        with pytest.raises(InputError, match=r"\.metadata' is not what a checkpoint holds, and was not read"):
            read()
    assert not marker.exists()


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


def replaced(content: Metadata, **changes: object) -> Metadata:
    content.storage_data = {key: dataclasses.replace(info, **changes) for key, info in content.storage_data.items()}
    return content


@pytest.mark.parametrize("what", HOSTILE)
def test_metadata_of_another_kind_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    saved(tmp_path)
    content = HOSTILE[what](metadata(tmp_path))
    tampered(tmp_path, ".metadata", pickle.dumps(content))
    with pytest.raises(InputError, match=r"\.metadata' is not what a checkpoint holds, and was not read") as caught:
        Checkpoints(tmp_path, Ranks()).load(state(0))
    assert "\n" not in str(caught.value)


def test_metadata_cannot_set_anything_on_the_classes_of_the_library(tmp_path: Path) -> None:
    saved(tmp_path)
    # the class itself, then BUILD with (None, {"load": 1}): setattr(Metadata, "load", 1)
    program = b"\x80\x04\x8c\x2etorch.distributed.checkpoint.metadata\x8c\x08Metadata\x93N}\x8c\x04loadK\x01s\x86b."
    program = program.replace(b"\x8c\x2e", bytes([0x8C, len("torch.distributed.checkpoint.metadata")]))
    tampered(tmp_path, ".metadata", program)
    with pytest.raises(InputError, match="is not what a checkpoint holds"):
        Checkpoints(tmp_path, Ranks()).load(state(0))
    assert not hasattr(Metadata, "load")


@pytest.mark.parametrize("value", ["call", [1, 2, 3], "text", None, {"a": 1}])
def test_an_entry_that_is_no_tensor_is_read_as_a_plain_value_of_its_kind(tmp_path: Path, value: object) -> None:
    saved(tmp_path)
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
        Checkpoints(tmp_path, Ranks()).load(state(0))
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_metadata_of_single_processes_is_not_looked_for(tmp_path: Path) -> None:
    saved(tmp_path)
    marker = tmp_path / "called"
    tampered(tmp_path, ".metadata", b"")
    tampered(tmp_path, "__0.metadata", pickle.dumps(Calls(os.system, f"touch {marker}")))
    with pytest.raises(InputError, match=r"\.metadata' is not what a checkpoint holds"):
        Checkpoints(tmp_path, Ranks()).load(state(0))
    assert not marker.exists()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_changed_bytes_are_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    saved(tmp_path, (2,))
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
            Checkpoints(tmp_path, Ranks()).load(state(0))
        except InputError as error:
            refused.append(str(error))
        tampered(tmp_path, name, whole[name])
    assert refused
    assert "\n" not in "".join(refused)


def manifest_with(folder: Path, **changes: object) -> None:
    path = folder / "step-00000002" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage",
    ["a list", "empty", "without facts", "step", "both steps", "count", "many", "name", "link", "folder", "deep"],
)
def test_a_manifest_that_is_not_ours_is_damage_and_no_traceback(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path)
    newest, shown = tmp_path / "step-00000002", "step-00000002"
    if damage in ("a list", "empty", "without facts", "deep"):
        content = {"a list": "[]", "empty": "", "without facts": '{"files": {}}', "deep": "[" * 100_000}[damage]
        (newest / MANIFEST).write_text(content)
    elif damage == "step":
        manifest_with(tmp_path, step=5)
    elif damage == "both steps":
        manifest_with(tmp_path, step=5)
        newest.rename(tmp_path / "step-00000005")
        shown = "step-00000005"
    elif damage == "count":
        manifest_with(tmp_path, data_offset="many")
    elif damage == "many":
        manifest_with(tmp_path, ahead=10**30)
    elif damage == "name":
        manifest_with(tmp_path, files={".metadata": [], "../step-00000001/manifest.json": []})
    elif damage == "link":
        data = next(newest.glob("*.distcp"))
        data.replace(tmp_path / "elsewhere")
        data.symlink_to(tmp_path / "elsewhere")
    else:
        data = next(newest.glob("*.distcp"))
        data.unlink()
        data.mkdir()
    facts = Checkpoints(tmp_path, Ranks()).load(state(0))
    assert facts is not None
    assert facts["step"] == 1
    said = capsys.readouterr().err
    assert f"{shown} is damaged" in said
    assert "going on from step-00000001" in said


def test_where_all_are_damaged_nothing_begins_anew(tmp_path: Path) -> None:
    saved(tmp_path)
    for data in tmp_path.rglob("*.distcp"):
        data.write_bytes(b"")
    with pytest.raises(InputError, match=r"step-00000002 is damaged .* no other is whole.* to begin anew"):
        Checkpoints(tmp_path, Ranks()).load(state(0))


def test_what_is_no_checkpoint_is_passed_over_and_stays(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    (tmp_path / "step-abc").mkdir()
    (tmp_path / ".x.part").write_text("mine")
    assert Checkpoints(tmp_path, Ranks()).steps() == [1]
    assert (tmp_path / "step-abc").exists()
    assert (tmp_path / ".x.part").read_text() == "mine"


def test_the_newest_that_has_not_diverged_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks(), keep=2)
    for step in range(1, 7):
        checkpoints.save(step, state(step), {"diverged": step > 2})
    checkpoints.finish()
    assert checkpoints.steps() == [2, 5, 6]


def test_another_version_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    Checkpoints(tmp_path, Ranks()).load(state(0))
    assert capsys.readouterr().err == ""
    manifest_with(tmp_path, versions={"anystep": "9.9", "torch": "1.0"})
    Checkpoints(tmp_path, Ranks()).load(state(0))
    assert "made with anystep 9.9 (this is " in capsys.readouterr().err


def test_whatever_ends_the_work_a_written_checkpoint_gets_its_name(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Checkpoints(tmp_path, Ranks()) as checkpoints:
            checkpoints.save(1, state(1), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Checkpoints(tmp_path, Ranks()).steps() == [1]
    assert Checkpoints(tmp_path, Ranks()).load(state(0)) is not None


def test_what_an_older_version_saved_is_checked_by_the_optimizers_count(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, (1,))
    content = state(1).state_dict()
    dcp.save(content, checkpoint_id=tmp_path / "step-00000002", no_dist=True)
    files = {path.name: digest(path) for path in (tmp_path / "step-00000002").iterdir()}
    (tmp_path / "step-00000002" / MANIFEST).write_text(json.dumps({"step": 2, "skipped": 1, "files": files}))
    facts = checkpoints.load(state(0))  # one step was made, and one skipped
    assert facts is not None
    assert facts["step"] == 2
    manifest_with(tmp_path, skipped=0)
    facts = checkpoints.load(state(0))
    assert facts is not None
    assert facts["step"] == 1


def test_an_interrupt_while_a_checkpoint_is_read_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dcp.FileSystemReader, "read_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path, Ranks()).load(state(0))
    with pytest.raises(KeyboardInterrupt):
        read_average(tmp_path, nn.Linear(3, 2))


def test_a_fifo_among_the_files_of_a_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.distcp")
    with pytest.raises(OSError, match="regular"):
        digest(tmp_path / "0.distcp")
