"""Checkpoints appear whole, are verified, and come back as they were."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.checkpoints import MANIFEST, Checkpoints, TrainingState, differing_tensors, read_average


def state(seed: int, trained: bool = True) -> TrainingState:
    """A small network that has made a step, its average and its optimizer."""
    torch.manual_seed(seed)
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    if trained:
        network(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    return TrainingState(network, [average], [optimizer])


def flat(content: object) -> dict[str, object]:
    if not isinstance(content, dict):
        return {"": content}
    return {f"{key}.{name}": value for key, part in content.items() for name, value in flat(part).items()}


def same(one: TrainingState, two: TrainingState) -> bool:
    left, right = flat(one.state_dict()), flat(two.state_dict())
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]  # type: ignore[arg-type]
        for name, value in left.items()
    )


def saved(folder: Path, steps: tuple[int, ...] = (1, 2), **options: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, Ranks(), **options)
    for step in steps:
        checkpoints.save(step, state(step), {"ahead": step})
    checkpoints.finish()
    return checkpoints


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved(tmp_path)
    other = state(9, trained=False)
    facts = Checkpoints(tmp_path, Ranks()).load(other)
    assert facts is not None
    assert (facts["step"], facts["ahead"]) == (2, 2)
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
    assert "step-00000002 is damaged, using the one before" in capsys.readouterr().err


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
    other = TrainingState(network, [], [torch.optim.AdamW(network.parameters())])
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
    assert {"step", "ahead", "versions", "files"} <= manifest.keys()
    assert set(manifest["files"]) == {path.name for path in (tmp_path / "step-00000002").iterdir()} - {MANIFEST}
