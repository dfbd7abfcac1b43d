"""Commands that take a recipe: its name, and any of its values as `--section.key VALUE`."""

import argparse
import os
import re
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from anystep.cli.option_types import spec
from anystep.cli.options import add_options
from anystep.cli.parser import OneLineParser
from anystep.errors import InputError
from anystep.training.recipes import command_of, find_recipe, recipe_names

if TYPE_CHECKING:
    from anystep.training.recipe_fields import RecipeField

# by class, the module that has it, and what is before the sections of a run
RECIPES = {
    "Recipe": ("anystep.training.config", ""),
    "CodecRecipe": ("anystep.training.codec_config", ""),
    "Comparison": ("anystep.compare.experiment", "recipe."),
}


def add_recipe(parser: OneLineParser, kind: str) -> None:
    """The recipe, and all that its class says in the help."""
    command, (module, prefix) = parser.prog.split()[-1], RECIPES[kind]
    example = "codec-emoji" if command == "train-codec" else "emoji"
    what = f"a name of `anystep recipes`, for example {example}, or a YAML file"
    recipe = parser.add_argument("recipe", type=spec, metavar="RECIPE", help=what)
    parser.add_argument("--debug", action="store_true", help="the recipe's laptop size")
    parser.takes_overrides = True
    parser.epilog = (
        "Any value of the recipe: --section.key VALUE, for example "
        f"--{prefix}run.batch_size 32. `anystep {command} RECIPE --help` has that recipe's."
    )

    def fields(words: Sequence[str] = ()) -> "list[RecipeField]":
        from anystep.training.recipe_fields import recipe_fields

        return recipe_fields(module, kind, find_recipe(words[0], command) if words else None)

    def explain(formatter: argparse.HelpFormatter, words: Sequence[str]) -> None:
        title = f"values of the recipe {words[0]}" if words else "values of a recipe"
        for section, inside in groupby(fields(words), lambda field: field.name.rpartition(".")[0]):
            formatter.start_section(f"{title}, {section}" if section else title)
            formatter.add_arguments([_as_option(field) for field in inside])
            formatter.end_section()

    parser.explain_overrides = explain
    parser.override_names = lambda: [field.name for field in fields()]
    add_options(parser, "--device", only=f"as --{prefix}run.device: ", default=None)
    parser.set_defaults(device_field=f"{prefix}run.device")
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what there is: names of recipes, and their values as options
        setattr(recipe, "completer", partial(_recipes_and_files, command))  # noqa: B010  # argcomplete's own attribute
        for field in fields():
            parser.add_argument(f"--{field.name}", choices=field.choices)


def _recipes_and_files(command: str, prefix: str, **_: Any) -> list[str]:
    from argcomplete.completers import FilesCompleter

    names = [name.removeprefix("compare/") for name in recipe_names() if command_of(name) == command]
    return [*names, *FilesCompleter(["yaml"])(prefix)]


def _as_option(field: "RecipeField") -> argparse.Action:
    """For the formatter of the help."""
    told = f"{field.sentence} (default: {field.default})".strip().replace("%", "%%")
    return argparse.Action([f"--{field.name}"], field.name, metavar=field.type, help=told)


def read_recipe(options: argparse.Namespace, kind: Any) -> Any:
    """The recipe, of that kind, that a command was given by name or path, with its overrides."""
    from anystep.training.recipe_files import load_recipe

    device = [] if options.device is None else [f"--{options.device_field}", options.device]
    try:
        overrides = [*options.overrides, *device]
        return load_recipe(find_recipe(options.recipe, options.command), kind, overrides, options.debug)
    except InputError as error:  # perhaps what was taken for an override was meant to be an option
        told, hint = str(error), options.did_you_mean(options.overrides)
        said = re.search(r", did you mean (\w+)\?", told)
        if hint and said:  # one hint: that of the options knows names of other programs too
            told, hint = (told, "") if hint.endswith(f".{said[1]}?") else (told.replace(said[0], ""), hint)
        raise InputError(told + hint) from None
