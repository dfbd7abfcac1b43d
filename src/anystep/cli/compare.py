"""`anystep compare`: several objectives trained alike, and their curves."""

import argparse
import shlex

from anystep.bounds import Threads
from anystep.cli.option_types import text
from anystep.cli.options import Commands, add_options
from anystep.cli.recipe_options import add_recipe, read_recipe
from anystep.console import say


def add(commands: Commands) -> None:
    parser = commands.add_parser("compare", help="train several objectives alike and draw their curves")
    add_recipe(parser, "Comparison")
    option = parser.add_argument
    add_options(parser, "--out")
    option("--only", type=text, nargs="+", metavar="NAME", help="some of the variants")
    option("--vary", type=text, nargs="+", default=[], metavar="KEY=VALUES", help="more variants of the first one")
    option("--jobs", type=Threads, default=1, help="runs at a time, each in its process")
    add_options(parser, "--allow-code")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.compare import Comparison, choose, compare, vary

    comparison = vary(choose(read_recipe(options, Comparison), options.only), options.vary)
    command = shlex.join(["anystep", *options.typed])
    compare(comparison, options.out, options.jobs, on_run=say, command=command, allow_code=options.allow_code)
    print(f"wrote {options.out}: report.md, report.json, curve.png, sheet.png")
