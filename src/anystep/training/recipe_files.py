"""Recipe files: YAML over the recipe that `base` names, with a `debug` section and overrides of the command line."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from anystep.bounds import shown
from anystep.errors import InputError
from anystep.objective.presets import OBJECTIVES
from anystep.plain_yaml import dump_yaml, parse_yaml
from anystep.training.objective_config import SET_BY_KINDS, ObjectiveConfig
from anystep.training.old_names import current_recipe
from anystep.training.recipes import ONE_VALUE, recipe_chain
from anystep.training.section import Section, explain

R = TypeVar("R", bound=Section)


def load_recipe(path: str | Path, kind: type[R], overrides: Sequence[str] = (), debug: bool = False) -> R:
    """A checked recipe from a YAML file, its `debug` section if asked for, and `--section.key value` overrides.

    Raises:
        InputError: in one line: a missing file, a key that does not exist (with the nearest that does), a wrong type.
    """
    content = reduce(merged, recipe_chain(Path(path)))
    debug_size = content.pop("debug", None)
    if debug:
        if not isinstance(debug_size, dict):
            raise InputError(f"recipe {str(path)!r} has no debug section")
        content = merged(content, debug_size)
    for key, value in _pairs(overrides):
        content = merged(content, set_path(key, value))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"recipe {shown(str(path))}: {explain(kind, error)}") from None


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2 or any(not word.startswith("--") for word in words[::2]):
        raise InputError(f"expected --section.key value pairs, got {shown(' '.join(overrides), 160)}")
    pairs = zip(words[::2], words[1::2], strict=True)
    return [(key[2:].replace("-", "_"), parse_yaml(value, shown(f"{key} {value}", 160))) for key, value in pairs]


def set_path(key: str, value: Any) -> dict[str, Any]:
    """`a.b.c` and a value as nested sections."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over`, section by section; another kind of objective sets its own values.

    Of `ONE_VALUE` the whole mapping is taken from `over`.
    """
    base, over = current_recipe(base), current_recipe(over)
    both = dict(base)
    kind = base.get("kind")
    if base.keys() >= SET_BY_KINDS and kind in list(OBJECTIVES) and over.get("kind", kind) != kind:
        # a section that says every value was dumped, not written: those that its kind has set go with the kind
        filled = ObjectiveConfig.model_validate({"kind": kind}).model_dump(mode="json")
        both = {key: value for key, value in base.items() if key not in SET_BY_KINDS or value != filled[key]}
    for key, value in over.items():
        nested = key not in ONE_VALUE and isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def dump(recipe: Section) -> str:
    """The recipe as YAML that `load_recipe` reads back."""
    return dump_yaml(recipe.model_dump(mode="json"))
