"""Names that earlier versions wrote."""

import json
from pathlib import Path

import pytest
from helpers import saved_checkpoints, training_tensors

from anystep.errors import InputError
from anystep.training.checkpoint_files import MANIFEST
from anystep.training.config import Recipe
from anystep.training.recipe_files import load_recipe
from anystep.training.trainer_state import TrainerState


def test_earlier_keys_are_read_and_later_ones_win_over_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {native: true}\nrun: {parts: 4, tokens_per_part: 512}\n")
    run = load_recipe(path, Recipe, ["--run.micro_batches", "2"]).run
    assert (run.micro_batches, run.tokens_per_micro_batch) == (2, 512)
    assert load_recipe(path, Recipe, ["--run.parts", "3"]).run.micro_batches == 3
    path.write_text("data: {native: true}\nrun: {parts: 4, micro_batches: 4}\n")
    with pytest.raises(InputError, match=r"unknown key run\.parts"):
        load_recipe(path, Recipe)


def test_a_checkpoint_that_was_written_earlier_goes_on_where_it_was_in_the_data(tmp_path: Path) -> None:
    checkpoints = saved_checkpoints(tmp_path, (3,))
    manifest = tmp_path / "step-00000003" / MANIFEST
    content = json.loads(manifest.read_text())
    content["ahead"] = content.pop("data_offset")
    manifest.write_text(json.dumps(content))
    assert TrainerState.of(checkpoints.load(training_tensors(0))) == TrainerState(step=3, data_offset=3)
