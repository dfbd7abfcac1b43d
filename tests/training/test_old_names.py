"""Names that earlier versions wrote."""

from pathlib import Path

import pytest

from anystep.errors import InputError
from anystep.training.config import Recipe
from anystep.training.recipe_files import load_recipe


def test_earlier_keys_are_read_and_later_ones_win_over_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {native: true}\nrun: {parts: 4, tokens_per_part: 512}\n")
    run = load_recipe(path, Recipe, ["--run.micro_batches", "2"]).run
    assert (run.micro_batches, run.tokens_per_micro_batch) == (2, 512)
    assert load_recipe(path, Recipe, ["--run.parts", "3"]).run.micro_batches == 3
    path.write_text("data: {native: true}\nrun: {parts: 4, micro_batches: 4}\n")
    with pytest.raises(InputError, match=r"unknown key run\.parts"):
        load_recipe(path, Recipe)
