"""`anystep recipes` and `anystep objectives`: what there is to train."""

import argparse
import sys

from anystep.cli.option_types import spec
from anystep.cli.options import Commands, add_options
from anystep.cli.output import print_json
from anystep.cli.parser import OneLineParser


def add(commands: Commands) -> None:
    told = "what can be trained, what it costs, and from which paper it is"
    objectives = commands.add_parser("objectives", help=told)
    add_options(objectives, "--json")
    objectives.set_defaults(run=run_objectives)
    recipes = commands.add_parser("recipes", help="the recipes that come with anystep")
    add_options(recipes, "--json")
    recipes.set_defaults(run=run_recipes)
    actions = recipes.add_subparsers(dest="action", metavar="ACTION", parser_class=OneLineParser)
    show = actions.add_parser("show", help="print one, to change it: `recipes show emoji > mine.yaml`")
    show.add_argument("name", type=spec, help="for example emoji or compare/fashion-mnist")
    show.set_defaults(run=run_recipes)


def run_recipes(options: argparse.Namespace) -> None:
    from anystep.training.recipes import command_of, description, find_recipe, recipe_names

    if options.action == "show":
        sys.stdout.write(find_recipe(options.name).read_text("utf-8"))
        return
    rows = [{"name": name, "command": command_of(name), "description": description(name)} for name in recipe_names()]
    if options.json:
        print_json(rows)
        return
    commands = [f"anystep {row['command']} {row['name'].removeprefix('compare/')}" for row in rows]
    width = max(map(len, commands))
    for command, row in zip(commands, rows, strict=True):
        print(f"{command:{width}}  {row['description']}")
    print("`anystep recipes show NAME` prints one (comparisons: compare/NAME); a changed copy is given by its path")


def run_objectives(options: argparse.Namespace) -> None:
    from anystep.objective.presets import OBJECTIVES
    from anystep.training.objective_config import ObjectiveConfig
    from anystep.training.plan import evaluations_per_sample

    costs = {kind: evaluations_per_sample(ObjectiveConfig.model_validate({"kind": kind})) for kind in OBJECTIVES}
    if options.json:
        print_json([{"kind": kind, "evaluations": costs[kind], **vars(OBJECTIVES[kind])} for kind in OBJECTIVES])
        return
    spent = "network evaluations a sample (a backward pass is two)"
    print(f"objective.kind of a recipe, {spent}, and the target where t > r:")
    for kind, preset in OBJECTIVES.items():
        print(f"{kind:20}{costs[kind]:5.2f}  {preset.equation}\n{'':27}{preset.label}: {preset.source}")
