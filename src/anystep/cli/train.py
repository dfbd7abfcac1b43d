"""`anystep train` and `anystep train-codec`."""

import argparse
from pathlib import Path
from typing import Any

from anystep.cli.option_types import output_folder
from anystep.cli.options import Commands, add_options, refuse_without
from anystep.cli.output import is_main, print_facts, print_json
from anystep.cli.recipe_options import add_recipe, read_recipe
from anystep.console import say
from anystep.errors import InputError

RUN_FOLDER = "the run folder; an existing run is resumed"


def add(commands: Commands) -> None:
    parser = commands.add_parser("train", help="train a transition model from a recipe")
    add_recipe(parser, "Recipe")
    parser.add_argument("--out", type=output_folder, help=RUN_FOLDER)
    parser.add_argument("--dry-run", action="store_true", help="print what it takes, and train nothing")
    add_options(parser, "--on", "--devices", "--utilisation", only="dry run: ")
    add_options(parser, "--json")
    parser.set_defaults(run=run)

    codec = commands.add_parser("train-codec", help="train a latent autoencoder from a recipe")
    add_recipe(codec, "CodecRecipe")
    add_options(codec, "--out", help=RUN_FOLDER)
    codec.set_defaults(run=run_codec)


def run(options: argparse.Namespace) -> None:
    from anystep.training.config import Recipe

    recipe = read_recipe(options, Recipe)
    if options.dry_run:
        return dry_run(options, recipe)
    refuse_without(options, "--dry-run", "on", "devices", "utilisation", "json")
    if options.out is None:
        raise InputError("--out is missing: the run folder; or --dry-run")
    from anystep.training.train import train

    report(train(recipe, options.out), recipe.run.steps, options.out)


def dry_run(options: argparse.Namespace, recipe: Any) -> None:
    """Print what training takes on the devices that it is planned for."""
    from anystep.training.dry_run import DryRun

    planned = DryRun(recipe, options.on, options.devices or 1, options.utilisation)
    if options.json:
        print_json(planned.figures())
    else:
        print_facts(planned.describe())


def run_codec(options: argparse.Namespace) -> None:
    from anystep.training.codec_config import CodecRecipe

    recipe = read_recipe(options, CodecRecipe)
    from anystep.training.train_codec import train_codec

    report(train_codec(recipe, options.out), recipe.run.steps, options.out)


def report(record: dict[str, Any], steps: int, out: Path) -> None:
    if is_main():
        state = "finished" if record["step"] >= steps else "interrupted, the same command resumes"
        say(f"{state} at step {record['step']} of {steps}: {out}")
