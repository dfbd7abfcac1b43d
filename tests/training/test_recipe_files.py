"""Recipe files: base, debug size and overrides."""

from pathlib import Path

import pytest
from helpers import write_recipe

from anystep.errors import InputError
from anystep.training.config import Recipe
from anystep.training.objective_config import ObjectiveConfig
from anystep.training.recipe_fields import recipe_fields
from anystep.training.recipe_files import dump, load_recipe

EMOJI = Path(__file__).parent.parent.parent / "configs" / "emoji.yaml"


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    recipe = load_recipe(EMOJI, Recipe, ["--run.steps", "7"])
    assert load_recipe(write_recipe(tmp_path, dump(recipe)), Recipe) == recipe


@pytest.mark.parametrize("words", [["--run.steps", "5", "--optimizer.betas", "[0.8, 0.9]"],
                                   ["--run.steps=5", "--optimizer.betas=[0.8, 0.9]"]])  # fmt: skip
def test_the_command_line_overrides_the_file_and_its_debug_size(tmp_path: Path, words: list[str]) -> None:
    path = write_recipe(tmp_path, "run: {steps: 9, batch_size: 3}\ndebug: {run: {steps: 2}}\n")
    recipe = load_recipe(path, Recipe, words, debug=True)
    assert (recipe.run.steps, recipe.run.batch_size, recipe.optimizer.betas) == (5, 3, (0.8, 0.9))
    assert load_recipe(path, Recipe, debug=True).run.steps == 2
    assert load_recipe(path, Recipe).run.steps == 9


def test_a_missing_recipe_or_debug_size_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read recipe .*none.yaml"):
        load_recipe(tmp_path / "none.yaml", Recipe)
    with pytest.raises(InputError, match="no debug section"):
        load_recipe(write_recipe(tmp_path, "run: {steps: 3}"), Recipe, debug=True)


def test_a_recipe_says_only_what_it_changes_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "near.yaml").write_text("base: emoji\nrun: {steps: 9}\ndebug: {run: {steps: 3}}\n")
    path = write_recipe(tmp_path, "base: near.yaml\nobjective: {kind: any_step}\n")
    recipe, emoji = load_recipe(path, Recipe, ["--run.seed", "4"]), load_recipe(EMOJI, Recipe)
    assert (recipe.run.steps, recipe.run.seed, recipe.run.batch_size) == (9, 4, emoji.run.batch_size)
    assert recipe.objective == ObjectiveConfig.model_validate({"kind": "any_step", "diffusion_phase": 0.4})
    assert (recipe.data, recipe.optimizer, recipe.ema_decay) == (emoji.data, emoji.optimizer, emoji.ema_decay)
    small = load_recipe(path, Recipe, debug=True)
    assert (small.run.steps, small.model.preset) == (3, "t2i-test")  # sections of both `debug`


@pytest.mark.parametrize("place", ["command line", "file"])
def test_a_mapping_of_sources_replaces_that_of_the_recipe_and_options_are_merged(tmp_path: Path, place: str) -> None:
    (tmp_path / "near.yaml").write_text(
        "base: emoji-native\ndata: {source: {my/pictures: 1}}\nmodel: {options: {depth: 3}}\n"
    )
    words = ["--data.source", "{my/pictures: 1}", "--model.options.depth", "3"]
    given = (EMOJI.parent / "emoji-native.yaml", words) if place == "command line" else (tmp_path / "near.yaml", [])
    recipe, native = load_recipe(given[0], Recipe, given[1]), load_recipe(EMOJI.parent / "emoji-native.yaml", Recipe)
    assert recipe.data.source == {"my/pictures": 1}
    assert (recipe.data.native, recipe.data.size) == (True, native.data.size)
    assert recipe.model.options == {**native.model.options, "depth": 3}
    said = {field.name: field.default for field in recipe_fields("anystep.training.config", "Recipe", given[0])}
    if place == "file":
        assert said["data.source"] == '{"my/pictures": 1}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: recipe.yaml\n", r"base 'recipe.yaml' leads back to itself"),
        ("base: emojy\n", "did you mean emoji"),
        ("base: [emoji]\n", "expected a recipe's name"),
    ],
)
def test_a_base_that_cannot_be_read_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe(write_recipe(tmp_path, text), Recipe)
