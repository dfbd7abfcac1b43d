"""`anystep evaluate`: quality against network evaluations."""

import argparse

from anystep.bounds import Count
from anystep.cli.option_types import input_file, output_file, spec
from anystep.cli.options import BASELINES, Commands, add_options, as_fields
from anystep.cli.output import print_dry_run, print_file

IMAGES = "[NAME@]STEPS[:NFE]=FOLDER"


def add(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="measure quality against network evaluations")
    option, several = parser.add_argument, {"type": spec, "nargs": "+"}
    option("--model", **several, default=[], help=f"{BASELINES} (default: builtin, unless --images is given)")
    made = "images made elsewhere, a folder each, with the name of their model"
    option("--images", **several, default=[], metavar=IMAGES, help=made)
    add_options(parser, "--steps", default=[1, 2, 4, 8, 16, 32])
    option("--samples", type=Count, default=2000, help="images a step count")
    add_options(parser, "--out", help="the report's folder; the same command resumes")
    add_options(parser, "--data")
    option("--metrics", **several, help="default: all that the extractor and the data allow")
    add_options(parser, "--extractor", "--allow-code")
    option("--reference", type=input_file, metavar="NPZ", help="mu and sigma for the Frechet distance")
    option("--save-reference", type=output_file, metavar="NPZ", help="write mu and sigma of the real images")
    option("--alignment", type=spec, help="builtin, none, or a file of train-alignment (default: builtin if it fits)")
    option("--clip-score", type=spec, metavar="MODEL", help="a CLIP model of transformers, by id or folder")
    add_options(parser, "--size", "--guidance", "--plan", "--seed")
    option("--keep-images", action="store_true", help="also write every image as a PNG file")
    add_options(parser, "--batch", "--threads", "--device", "--precision", "--dry-run", "--json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.evaluation.run import Request, evaluate_models

    figures = evaluate_models(Request(**as_fields(options, Request)))
    if not figures:  # one of several processes speaks
        return
    if options.dry_run:
        print_dry_run(options, figures)
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
