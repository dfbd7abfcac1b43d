"""What `--help` says of recipes is what their classes say."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from anystep.compare import Comparison
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import Recipe
from anystep.training.recipe_fields import RecipeField, recipe_fields
from anystep.training.recipe_files import load_recipe
from anystep.training.recipes import command_of, find_recipe, recipe_names

CLASSES: dict[str, type[Any]] = {"train": Recipe, "train-codec": CodecRecipe, "compare": Comparison}


def listed(kind: type[Any], name: str | None = None) -> list[RecipeField]:
    return recipe_fields(kind.__module__, kind.__name__, None if name is None else find_recipe(name))


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted names, sections left out that are null."""
    found = {}
    for name, value in content:
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_field_is_listed_with_a_type_and_a_sentence(kind: type[Any]) -> None:
    fields = {field.name: field for field in listed(kind)}
    sections = {name for name, value in flat(kind()).items() if value is None}
    assert set(flat(kind())) - sections <= set(fields)
    assert all(name in fields or any(other.startswith(f"{name}.") for other in fields) for name in sections)
    for field in fields.values():
        assert field.sentence.endswith("."), field
        assert field.type != "VALUE", field


@pytest.mark.parametrize("name", [None, *recipe_names()])
def test_defaults_are_those_of_the_recipe(name: str | None) -> None:
    kind = CLASSES["train" if name is None else command_of(name)]
    values = flat(kind() if name is None else load_recipe(find_recipe(name), kind))
    for field in listed(kind, name):
        if field.name in values and field.default != "computed" and not field.name.startswith("variants"):
            plain = json.loads(json.dumps(values[field.name]))
            assert json.loads(field.default) == plain, field


def test_an_objective_sets_the_defaults_of_its_section() -> None:
    default = {field.name: field.default for field in listed(Recipe, "emoji-ours")}
    assert default["objective.kind"] == '"any_step"'
    assert default["objective.along"] == '"velocity"'


def test_names_to_choose_from_are_known() -> None:
    choices = {field.name: field.choices for field in listed(Recipe)}
    assert choices["run.precision"] == ["auto", "float32", "bfloat16"]
    assert choices["run.steps"] is None
