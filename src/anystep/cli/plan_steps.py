"""`anystep plan-steps`: what each number of steps is best spent on."""

import argparse

from anystep.bounds import Count, SamplingSteps, parse
from anystep.cli.option_types import spec
from anystep.cli.options import (
    Commands,
    add_batch,
    add_data,
    add_device,
    add_extractor,
    add_guidance,
    add_json,
    add_out_folder,
    add_seed,
    add_threads,
    as_fields,
)
from anystep.cli.output import print_file


def add(commands: Commands) -> None:
    parser = commands.add_parser("plan-steps", help="choose what each number of steps is best spent on")
    parser.add_argument("model", type=spec, metavar="MODEL", help="a folder, a training run or a hub id")
    add_out_folder(parser, "of the search and a copy of the model; the command resumes")
    parser.add_argument(
        "--in-place", action="store_true", help="write the plans into the model's own folder, and make no copy"
    )
    add_data(parser)
    parser.add_argument(
        "--budgets",
        type=parse(SamplingSteps),
        nargs="+",
        default=[1, 2, 4, 8, 16, 32, 64],
        help="numbers of steps (default: 1 2 4 8 16 32 64)",
    )
    parser.add_argument("--samples", type=parse(Count), default=1000, help="images a plan (default: 1000)")
    parser.add_argument("--metric", type=spec, default="frechet_distance", help="to choose by (frechet_distance)")
    add_extractor(parser)
    add_guidance(parser)
    add_seed(parser)
    add_batch(parser)
    add_threads(parser)
    add_device(parser)
    add_json(parser)
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
