"""`anystep plan-steps`: what each number of steps is best spent on."""

import argparse

from anystep.bounds import Count, SamplingSteps, parse
from anystep.cli import options as common
from anystep.cli.option_types import spec
from anystep.cli.output import print_file


def add(commands: common.Commands) -> None:
    parser = commands.add_parser("plan-steps", help="choose what each number of steps is best spent on")
    parser.add_argument("model", type=spec, metavar="MODEL", help="a folder, a training run or a hub id")
    common.add_out_folder(parser, "of the search and a copy of the model; the command resumes")
    parser.add_argument(
        "--in-place", action="store_true", help="write the plans into the model's own folder, and make no copy"
    )
    common.add_data(parser)
    parser.add_argument(
        "--budgets",
        type=parse(SamplingSteps),
        nargs="+",
        default=[1, 2, 4, 8, 16, 32, 64],
        help="numbers of steps (default: 1 2 4 8 16 32 64)",
    )
    parser.add_argument("--samples", type=parse(Count), default=1000, help="images a plan (default: 1000)")
    parser.add_argument("--metric", type=spec, default="frechet_distance", help="to choose by (frechet_distance)")
    common.add_extractor(parser)
    common.add_guidance(parser)
    common.add_seed(parser)
    common.add_batch(parser)
    common.add_threads(parser)
    common.add_device(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.evaluation.step_plans import PlanRequest, plan_steps, table

    figures = plan_steps(PlanRequest(**common.as_fields(options, PlanRequest)))
    if not figures:  # one of several processes speaks
        return
    if options.json:
        print_file(options.out / "plans.json")
        return
    print(table(figures))
    where = "the model's folder" if options.in_place else f"--model {options.out}"
    print(f"wrote {options.out}: plans.md, plans.json; the plans are used by {where}")
