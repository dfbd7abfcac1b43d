"""`anystep average`: a model of any average of a run's weights."""

import argparse

from anystep.bounds import AverageLength, Count, parse
from anystep.cli import options as common
from anystep.cli.option_types import input_folder, spec
from anystep.errors import InputError

CHOOSING = "with --choose: "
MEASURING = ("steps", "samples", "data", "extractor", "allow_code", "guidance", "seed", "batch", "device")


def add(commands: common.Commands) -> None:
    parser = commands.add_parser("average", help="a model of any average of a run's weights, and which length is best")
    parser.add_argument("folder", type=input_folder, metavar="RUN", help="of a run trained with ema_lengths")
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument(
        "--length", type=parse(AverageLength), help="of the average: the deviation of its profile over the run"
    )
    lengths.add_argument(
        "--choose", type=parse(AverageLength), nargs="+", metavar="LENGTH", help="measure these, and take the best"
    )
    common.add_out_folder(parser, "the model's folder")
    parser.add_argument("--step", type=parse(Count), help="the snapshot that it ends at (default: the last)")
    parser.add_argument("--data", type=spec, help=f"{CHOOSING}images to compare with, not those of training")
    common.add_steps(parser, None, f"{CHOOSING}step counts to measure (default: 1 4 32)")
    parser.add_argument(
        "--samples", type=parse(Count), help=f"{CHOOSING}images a length and step count (default: 1000)"
    )
    common.add_extractor(parser, CHOOSING, default=None)
    common.add_guidance(parser, CHOOSING)
    common.add_seed(parser, CHOOSING, default=None)
    common.add_batch(parser, CHOOSING, default=None)
    common.add_device(parser, CHOOSING, default=None)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.choose is None:
        common.refuse_without(options, "--choose", *MEASURING)
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
        print(
            f"wrote {options.out}: length {found[0].length:g}; {options.folder / REPORT}: report.md, report.json, ..."
        )
