"""`anystep evaluate`: quality against network evaluations."""

import argparse

from anystep.bounds import Count, parse
from anystep.cli.option_types import input_file, output_file, spec
from anystep.cli.options import (
    Commands,
    add_batch,
    add_data,
    add_device,
    add_extractor,
    add_guidance,
    add_json,
    add_out_folder,
    add_plan,
    add_seed,
    add_size,
    add_steps,
    add_threads,
    as_fields,
)
from anystep.cli.output import print_file


def add(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="measure quality against network evaluations")
    parser.add_argument("--model", type=spec, nargs="+", default=[], help="default: builtin, unless --images is given")
    parser.add_argument(
        "--images",
        type=spec,
        nargs="+",
        default=[],
        metavar="[NAME@]STEPS[:NFE]=FOLDER",
        help="images made elsewhere, a folder each, with the name of their model",
    )
    add_steps(parser, [1, 2, 4, 8, 16, 32])
    parser.add_argument("--samples", type=parse(Count), default=2000, help="images a step count (default: 2000)")
    add_out_folder(parser, "the report's folder; the same command resumes")
    add_data(parser)
    parser.add_argument("--metrics", type=spec, nargs="+", help="default: all that the extractor and the data allow")
    add_extractor(parser)
    parser.add_argument("--reference", type=input_file, metavar="NPZ", help="mu and sigma for the Frechet distance")
    parser.add_argument(
        "--save-reference", type=output_file, metavar="NPZ", help="write mu and sigma of the real images"
    )
    parser.add_argument(
        "--alignment", type=spec, help="builtin, none, or a file of train-alignment (default: builtin if it fits)"
    )
    parser.add_argument(
        "--clip-score", type=spec, metavar="MODEL", help="a CLIP model of transformers, by id or folder"
    )
    add_size(parser)
    add_guidance(parser)
    add_plan(parser)
    add_seed(parser)
    parser.add_argument("--keep-images", action="store_true", help="also write every image as a PNG file")
    add_batch(parser)
    add_threads(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.evaluation.run import Request, evaluate_models

    figures = evaluate_models(Request(**as_fields(options, Request)))
    if not figures:  # one of several processes speaks
        return
    if options.json:
        print_file(options.out / "report.json")
        return
    for what, control in figures["controls"].items():
        print(f"{what}: {in_words(control)}")
    for model in figures["models"]:
        print(model["name"])
        for point in model["points"]:
            print(f"  {point['steps']:4} steps {point['nfe']:4} NFE  {in_words(point['metrics'])}")
        for name, monotone in model["monotone"].items():
            print(f"  {name}: {monotone['verdict']}")
    sheet = ", sheet.png" * (options.out / "sheet.png").exists()
    print(f"wrote {options.out}: report.md, report.json, curve.png{sheet}")


def in_words(metrics: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {figure['value']:.3f}" for name, figure in metrics.items())
