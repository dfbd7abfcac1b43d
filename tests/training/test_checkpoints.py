"""Checkpoints appear whole, are verified, and come back as they were."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import manifest_with, saved_checkpoints, training_tensors
from torch import nn

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import MANIFEST, differing_tensors, read_average
from anystep.training.checkpoints import Checkpoints
from anystep.training.trainer_state import TrainingTensors


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


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path)
    other = training_tensors(9, trained=False)
    facts = Checkpoints(tmp_path, Ranks()).load(other)
    assert facts is not None
    assert (facts["step"], facts["data_offset"]) == (2, 2)
    assert same(other, training_tensors(2))


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", Ranks()).load(training_tensors(0)) is None


def test_a_saved_state_does_not_follow_the_weights(tmp_path: Path) -> None:
    checkpoints, moving = Checkpoints(tmp_path, Ranks()), training_tensors(3)
    checkpoints.save(1, moving.state_dict(), {})
    with torch.no_grad():
        for parameter in moving.network.parameters():
            parameter.add_(1)
    checkpoints.finish()
    back = training_tensors(4)
    checkpoints.load(back)
    assert same(back, training_tensors(3))


def test_the_newest_are_kept_and_those_at_multiples(tmp_path: Path) -> None:
    assert saved_checkpoints(tmp_path, (1, 2, 3, 4, 5, 6, 7), keep=2, keep_every=3).steps() == [3, 5, 6, 7]
    assert saved_checkpoints(tmp_path / "two", (1, 2, 3, 4, 5), keep=1, keep_every=(2, 3)).steps() == [2, 3, 5]
    assert all(path.name.startswith("step-") for path in (tmp_path / "two").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "bad manifest", "lost file"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = saved_checkpoints(tmp_path)
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
    back = training_tensors(5)
    facts = checkpoints.load(back)
    assert facts is not None
    assert facts["step"] == 1
    assert same(back, training_tensors(1))
    said = capsys.readouterr().err
    assert "step-00000002 is damaged" in said
    assert "going on from step-00000001; it is kept as damaged-step-00000002" in said
    assert (tmp_path / "damaged-step-00000002").is_dir()
    # nothing takes it for the newest one now
    assert checkpoints.steps() == [1]
    fewer = Checkpoints(tmp_path, Ranks(), keep=1)
    fewer.save(2, back.state_dict(), {})
    fewer.finish()
    assert checkpoints.steps() == [2]


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path, (1,))
    (tmp_path / ".step-00000002.part").mkdir()
    assert Checkpoints(tmp_path, Ranks()).steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_failed_save_leaves_the_others_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved_checkpoints(tmp_path)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    # the last thing the writer does is to give its metadata file its name
    monkeypatch.setattr(Path, "rename", full)
    checkpoints.save(3, training_tensors(3).state_dict(), {})
    with pytest.raises(InputError, match=r"checkpoint of step 3 could not be written: .*No space left on device"):
        checkpoints.finish()
    assert checkpoints.steps() == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_another_architecture_is_refused_with_what_differs(tmp_path: Path) -> None:
    checkpoints = saved_checkpoints(tmp_path)
    network = nn.Sequential(nn.Linear(3, 2))
    other = TrainingTensors(network, [], [torch.optim.AdamW(network.parameters())])
    with pytest.raises(InputError, match="another architecture") as caught:
        checkpoints.load(other)
    assert "0.weight (none there and (2, 3) here), bias ((2,) there and none here)" in str(caught.value)
    assert differing_tensors(network.state_dict(), network.state_dict()) == ""
    many = {str(number): torch.zeros(number) for number in range(8)}
    assert differing_tensors(many, {}).endswith("4 ((4,) there and none here) and 3 more")


def test_the_manifest_says_what_wrote_it(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path)
    manifest = json.loads((tmp_path / "step-00000002" / MANIFEST).read_text())
    assert {"step", "data_offset", "versions", "files"} <= manifest.keys()
    assert set(manifest["files"]) == {path.name for path in (tmp_path / "step-00000002").iterdir()} - {MANIFEST}


def test_where_all_are_damaged_nothing_begins_anew(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path)
    for data in tmp_path.rglob("*.distcp"):
        data.write_bytes(b"")
    with pytest.raises(InputError, match=r"step-00000002 is damaged .* no other is whole.* to begin anew"):
        Checkpoints(tmp_path, Ranks()).load(training_tensors(0))


def test_the_newest_that_has_not_diverged_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Ranks(), keep=2)
    for step in range(1, 7):
        checkpoints.save(step, training_tensors(step).state_dict(), {"diverged": step > 2})
    checkpoints.finish()
    assert checkpoints.steps() == [2, 5, 6]


def test_another_version_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_checkpoints(tmp_path)
    Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    assert capsys.readouterr().err == ""
    manifest_with(tmp_path, versions={"anystep": "9.9", "torch": "1.0"})
    Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    assert "made with anystep 9.9 (this is " in capsys.readouterr().err


def test_whatever_ends_the_work_a_written_checkpoint_gets_its_name(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Checkpoints(tmp_path, Ranks()) as checkpoints:
            checkpoints.save(1, training_tensors(1).state_dict(), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Checkpoints(tmp_path, Ranks()).steps() == [1]
    assert Checkpoints(tmp_path, Ranks()).load(training_tensors(0)) is not None


def test_an_interrupt_while_a_checkpoint_is_read_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_checkpoints(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dcp.FileSystemReader, "read_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    with pytest.raises(KeyboardInterrupt):
        read_average(tmp_path, nn.Linear(3, 2))
