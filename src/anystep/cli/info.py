"""`anystep info`: versions, device, and what a model is and knows."""

import argparse

from anystep.cli.options import Commands, add_options
from anystep.cli.output import print_facts, print_json


def add(commands: Commands) -> None:
    parser = commands.add_parser("info", help="versions, device, and what a model is and knows")
    add_options(parser, "--model", "--device", "--json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.environment import environment
    from anystep.pipelines.describe import describe
    from anystep.pipelines.load import load

    facts = {**environment(), **describe(load(options.model, options.device))}
    if options.json:
        print_json(facts)
        return
    concepts = facts.pop("concepts") or []
    told = {
        name.replace("_", " "): ", ".join(value) if isinstance(value, list) else value
        for name, value in facts.items()
        if value is not None
    }
    print_facts(told, width=24)
    if concepts:
        print(f"knows {len(concepts)} concepts: {', '.join(concepts)}")
        print('prompts it was trained on look like "a red apple on a blue background, flat style"')
