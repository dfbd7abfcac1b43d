"""`anystep data`: look at data, and prepare them for training."""

import argparse
from pathlib import Path

from anystep.bounds import Aspect, Count, Side, parse
from anystep.cli.option_types import output_file, spec, square
from anystep.cli.options import Commands, add_device, add_out_folder, add_size, as_fields
from anystep.cli.parser import OneLineParser

DEFAULT_SHEET = Path("sheet.png")


def add(commands: Commands) -> None:
    parser = commands.add_parser("data", help="look at data, and prepare them for training")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=OneLineParser)
    add_show(actions)
    add_prepare(actions)


def add_show(actions: Commands) -> None:
    parser = actions.add_parser("show", help="a contact sheet of a source")
    parser.add_argument(
        "source", type=spec, help="builtin, scenes, a folder, or classes:, idx:, parquet: or shards:FOLDER"
    )
    parser.add_argument("--out", type=output_file, help="the picture (default: sheet.png, or the next free name)")
    parser.add_argument("--count", type=parse(Count), default=120, help="examples, all over the source (default: 120)")
    add_size(parser, type=square, default=96, help="of an image in pixels, a square (default: 96)")
    parser.set_defaults(run=run_show)


def add_prepare(actions: Commands) -> None:
    parser = actions.add_parser("prepare", help="encode a source once, into tar shards that training reads")
    parser.add_argument("source", type=spec, help="a folder, classes:FOLDER, parquet:FOLDER, shards:URL of images, ...")
    add_out_folder(parser)
    add_size(parser, type=square, required=True, help="of the images in pixels, a square")
    parser.add_argument(
        "--native", action="store_true", help="images keep their shape: --size is that of a square of the most area"
    )
    parser.add_argument("--longest", type=parse(Side), help="with --native: the most pixels along one side")
    parser.add_argument(
        "--aspect", type=parse(Aspect), default=5.0, help="with --native: longest over shortest (default: 5)"
    )
    parser.add_argument("--codec", type=spec, default="builtin", help="builtin, identity, a folder or a hub id")
    parser.add_argument(
        "--text-encoder", type=spec, help="also keep the token states of captions: builtin, a folder or hub id"
    )
    parser.add_argument(
        "--features", type=spec, help="also keep features for alignment: DINOv2, SigLIP by id, or radio:VERSION"
    )
    parser.add_argument("--patch-size", type=parse(Side), default=1, help="of the network that the features are for")
    parser.add_argument("--mirror", action="store_true", help="also keep every image turned left to right")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: float16")
    parser.add_argument("--shard-size", type=parse(Count), default=1000, help="examples in a tar (default: 1000)")
    add_device(parser)
    parser.set_defaults(run=run_prepare)


def run_show(options: argparse.Namespace) -> None:
    from anystep.contact_sheet import check_writable, free_name, save_image
    from anystep.data.folders import SHEET
    from anystep.data.overview import overview
    from anystep.data.summary import left_out

    check_writable(options.out or DEFAULT_SHEET)
    sheet = overview(options.source, options.size, options.count)
    save_image(sheet.picture, out := options.out or free_name(DEFAULT_SHEET), software=SHEET)
    for line in (*sheet.passed_over.lines, *left_out(sheet.left_out)):
        print(line)
    print(f"wrote {out}: {sheet.shown} of {sheet.total} examples")


def run_prepare(options: argparse.Namespace) -> None:
    from anystep.data.run import Request, prepare_data

    for line in prepare_data(Request(**as_fields(options, Request))):
        print(line)
