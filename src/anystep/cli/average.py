"""`anystep average`: a model of any average of a run's weights."""

import argparse

from anystep.bounds import AverageLength, Count, parse
from anystep.cli.option_types import input_folder, spec
from anystep.cli.options import Commands, add_options, refuse_without
from anystep.errors import InputError

CHOOSING = "with --choose: "
MEASURING = ("steps", "samples", "data", "extractor", "allow_code", "guidance", "seed", "batch", "device")


def add(commands: Commands) -> None:
    parser = commands.add_parser("average", help="a model of any average of a run's weights, and which length is best")
    option = parser.add_argument
    option("folder", type=input_folder, metavar="RUN", help="of a run trained with ema_lengths")
    lengths, length = parser.add_mutually_exclusive_group(required=True), parse(AverageLength)
    lengths.add_argument("--length", type=length, help="of the average: the deviation of its profile over the run")
    lengths.add_argument("--choose", type=length, nargs="+", metavar="LENGTH", help="measure these, and take the best")
    add_options(parser, "--out", help="the model's folder")
    option("--step", type=Count, help="the snapshot that it ends at (default: the last)")
    option("--data", type=spec, help=f"{CHOOSING}images to compare with, not those of training")
    add_options(parser, "--steps", only=CHOOSING, help="step counts to measure (default: 1 4 32)")
    option("--samples", type=Count, help=f"{CHOOSING}images a length and step count (default: 1000)")
    add_options(parser, "--extractor", only=CHOOSING, default=None)
    add_options(parser, "--allow-code", "--guidance", only=CHOOSING)
    add_options(parser, "--seed", "--batch", "--device", only=CHOOSING, default=None)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.choose is None:
        refuse_without(options, "--choose", *MEASURING)
        from anystep.average import write_average

        made = write_average(options.folder, options.length, options.out, options.step)
        count = len(made.weights)
        print(
            f"wrote {options.out}: length {made.length:g} at step {made.step}, of {count} snapshot{'s' * (count > 1)}; "
            f"its profile is {made.misfit:.2%} off"
        )
        return
    if options.data is None:
        raise InputError("--data is missing: images to compare with, better not those of training")
    from anystep.average import REPORT, choose_length, table
    from anystep.evaluation.run import Request

    given = {name: value for name in MEASURING if (value := getattr(options, name)) is not None}
    request = Request(**{"steps": [1, 4, 32], "samples": 1000, **given, "out": options.out, "model": [], "images": []})
    found = choose_length(options.folder, options.choose, options.out, request, options.step)
    if found:
        print(table(found))
        report = options.folder / REPORT
        print(f"wrote {options.out}: length {found[0].length:g}; {report}: report.md, report.json, ...")
