"""`anystep plan-steps`: what each number of steps is best spent on."""

import argparse

from anystep.bounds import Count, SamplingSteps
from anystep.cli.option_types import spec
from anystep.cli.options import Commands, add_options, as_fields
from anystep.cli.output import print_file


def add(commands: Commands) -> None:
    parser = commands.add_parser("plan-steps", help="choose what each number of steps is best spent on")
    option, budgets = parser.add_argument, [1, 2, 4, 8, 16, 32, 64]
    option("model", type=spec, metavar="MODEL", help="a folder, a training run or a hub id")
    add_options(parser, "--out", help="of the search and a copy of the model; the command resumes")
    option("--in-place", action="store_true", help="write the plans into the model's own folder, and make no copy")
    add_options(parser, "--data")
    option("--budgets", type=SamplingSteps, nargs="+", default=budgets, help="numbers of steps")
    option("--samples", type=Count, default=1000, help="images a plan")
    option("--metric", type=spec, default="frechet_distance", help="to choose by")
    add_options(parser, "--extractor", "--allow-code", "--guidance", "--seed", "--batch", "--threads", "--device")
    add_options(parser, "--precision")
    add_options(parser, "--json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.evaluation.step_plans import PlanRequest, plan_steps, table

    figures = plan_steps(PlanRequest(**as_fields(options, PlanRequest)))
    if not figures:  # one of several processes speaks
        return
    if options.json:
        print_file(options.out / "plans.json")
        return
    print(table(figures))
    where = "the model's folder" if options.in_place else f"--model {options.out}"
    print(f"wrote {options.out}: plans.md, plans.json; the plans are used by {where}")
