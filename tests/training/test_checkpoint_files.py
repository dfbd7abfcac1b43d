"""The files of a checkpoint: manifests that are not ours, and reading in one process alone."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import manifest_with, saved_checkpoints, training_tensors
from torch import nn

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import MANIFEST, digest, read_average
from anystep.training.checkpoints import Checkpoints


def test_an_average_is_read_into_a_plain_network(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path)
    network = nn.Linear(3, 2)
    assert read_average(tmp_path, network) == 2
    assert all(
        torch.equal(one, two)
        for one, two in zip(network.parameters(), training_tensors(2).averages[0].parameters(), strict=True)
    )
    with pytest.raises(InputError, match="no checkpoint to export"):
        read_average(tmp_path / "none", network)


@pytest.mark.parametrize(
    "damage",
    ["a list", "empty", "without facts", "step", "both steps", "count", "many", "name", "link", "folder", "deep"],
)
def test_a_manifest_that_is_not_ours_is_damage_and_no_traceback(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_checkpoints(tmp_path)
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
    facts = Checkpoints(tmp_path, Ranks()).load(training_tensors(0))
    assert facts is not None
    assert facts["step"] == 1
    said = capsys.readouterr().err
    assert f"{shown} is damaged" in said
    assert "going on from step-00000001" in said


def test_what_is_no_checkpoint_is_passed_over_and_stays(tmp_path: Path) -> None:
    saved_checkpoints(tmp_path, (1,))
    (tmp_path / "step-abc").mkdir()
    (tmp_path / ".x.part").write_text("mine")
    assert Checkpoints(tmp_path, Ranks()).steps() == [1]
    assert (tmp_path / "step-abc").exists()
    assert (tmp_path / ".x.part").read_text() == "mine"


def test_what_an_older_version_saved_is_checked_by_the_optimizers_count(tmp_path: Path) -> None:
    checkpoints = saved_checkpoints(tmp_path, (1,))
    content = training_tensors(1).state_dict()
    dcp.save(content, checkpoint_id=tmp_path / "step-00000002", no_dist=True)
    files = {path.name: digest(path) for path in (tmp_path / "step-00000002").iterdir()}
    (tmp_path / "step-00000002" / MANIFEST).write_text(json.dumps({"step": 2, "skipped": 1, "files": files}))
    facts = checkpoints.load(training_tensors(0))  # one step was made, and one skipped
    assert facts is not None
    assert facts["step"] == 2
    manifest_with(tmp_path, skipped=0)
    facts = checkpoints.load(training_tensors(0))
    assert facts is not None
    assert facts["step"] == 1


def test_a_fifo_among_the_files_of_a_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.distcp")
    with pytest.raises(OSError, match="regular"):
        digest(tmp_path / "0.distcp")
