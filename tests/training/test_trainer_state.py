"""What a run is resumed from."""

import json
from pathlib import Path

import pytest
import torch
from helpers import saved_checkpoints, training_tensors
from torch import nn

from anystep.training.checkpoint_files import MANIFEST
from anystep.training.trainer_state import LOST, TrainerState, TrainingTensors


def test_a_checkpoint_that_was_written_earlier_goes_on_where_it_was_in_the_data(tmp_path: Path) -> None:
    checkpoints = saved_checkpoints(tmp_path, (3,))
    manifest = tmp_path / "step-00000003" / MANIFEST
    content = json.loads(manifest.read_text())
    content["ahead"] = content.pop("data_offset")
    manifest.write_text(json.dumps(content))
    assert TrainerState.of(checkpoints.load(training_tensors(0))) == TrainerState(step=3, data_offset=3)


@pytest.mark.parametrize(("row", "finite", "diverged"), [(0, True, False), (LOST, True, True), (0, False, True)])
def test_a_run_has_diverged_where_its_last_steps_were_skipped_or_not_finite(
    row: int, finite: bool, diverged: bool
) -> None:
    state = TrainerState.of(None)
    state.skipped_in_a_row = row
    state.reach(7, finite)
    assert (state.step, state.diverged) == (7, diverged)


def test_what_the_loss_has_learned_comes_back_with_the_network() -> None:
    def tensors(seed: int) -> TrainingTensors:
        plain, normaliser = training_tensors(seed), nn.Linear(1, 1)
        optimizer = torch.optim.Adam(normaliser.parameters())
        normaliser(torch.ones(1)).backward()
        optimizer.step()
        return TrainingTensors(plain.network, plain.averages, plain.optimizers, normaliser, [optimizer])

    one, other = tensors(1), tensors(2)
    saved = one.state_dict()
    assert saved.keys() == {"network", "optimizer", "ema-0", "normaliser", "normaliser-optimizer"}
    other.load_state_dict(saved)
    assert one.normaliser is not None
    assert other.normaliser is not None
    for left, right in ((one.network, other.network), (one.normaliser, other.normaliser)):
        assert all(map(torch.equal, left.parameters(), right.parameters()))
