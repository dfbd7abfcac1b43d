"""`anystep evaluate`: quality against network evaluations."""

import argparse

from anystep.bounds import Count, parse
from anystep.cli import options as common
from anystep.cli.option_types import input_file, output_file, spec
from anystep.cli.output import print_file


def add(commands: common.Commands) -> None:
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
    common.add_steps(parser, [1, 2, 4, 8, 16, 32])
    parser.add_argument("--samples", type=parse(Count), default=2000, help="images a step count (default: 2000)")
    common.add_out_folder(parser, "the report's folder; the same command resumes")
    common.add_data(parser)
    parser.add_argument("--metrics", type=spec, nargs="+", help="default: all that the extractor and the data allow")
    common.add_extractor(parser)
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
    common.add_size(parser)
    common.add_guidance(parser)
    common.add_plan(parser)
    common.add_seed(parser)
    parser.add_argument("--keep-images", action="store_true", help="also write every image as a PNG file")
    common.add_batch(parser)
    common.add_threads(parser)
    common.add_device(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.evaluation.run import Request, evaluate_models

    figures = evaluate_models(Request(**common.as_fields(options, Request)))
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
