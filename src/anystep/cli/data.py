"""`anystep data`: look at data, and prepare them for training."""

import argparse
from pathlib import Path

from anystep.bounds import Aspect, Count, Side
from anystep.cli.option_types import output_file, spec, square
from anystep.cli.options import Commands, add_options, as_fields
from anystep.cli.parser import OneLineParser

DEFAULT_SHEET = Path("sheet.png")


def add(commands: Commands) -> None:
    parser = commands.add_parser("data", help="look at data, and prepare them for training")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=OneLineParser)
    add_show(actions.add_parser("show", help="a contact sheet of a source"))
    add_prepare(actions.add_parser("prepare", help="encode a source once, into tar shards that training reads"))


def add_show(parser: OneLineParser) -> None:
    option = parser.add_argument
    option("source", type=spec, help="builtin, scenes, a folder, or classes:, idx:, parquet: or shards:FOLDER")
    option("--out", type=output_file, help="the picture (default: sheet.png, or the next free name)")
    option("--count", type=Count, default=120, help="examples, all over the source")
    add_options(parser, "--size", type=square, default=96, help="of an image in pixels, a square")
    parser.set_defaults(run=run_show)


def add_prepare(parser: OneLineParser) -> None:
    option = parser.add_argument
    option("source", type=spec, help="a folder, classes:FOLDER, parquet:FOLDER, shards:URL of images, ...")
    add_options(parser, "--out")
    add_options(parser, "--size", type=square, required=True, help="of the images in pixels, a square")
    option("--native", action="store_true", help="images keep their shape: --size is that of a square of the most area")
    option("--longest", type=Side, help="with --native: the most pixels along one side")
    option("--aspect", type=Aspect, help="with --native: longest over shortest (default: 5)")
    option("--codec", type=spec, default="builtin", help="builtin, identity, a folder or a hub id")
    option("--text-encoder", type=spec, help="also keep the token states of captions: builtin, a folder or hub id")
    option("--features", type=spec, help="also keep features for alignment: DINOv2, SigLIP by id, or radio:VERSION")
    option("--patch-size", type=Side, default=1, help="of the network that the features are for")
    option("--mirror", action="store_true", help="also keep every image turned left to right")
    option("--dtype", choices=("float16", "float32"), default="float16", help="of latents and states")
    option("--shard-size", type=Count, default=1000, help="examples in a tar")
    add_options(parser, "--device")
    parser.set_defaults(run=run_prepare)


def run_show(options: argparse.Namespace) -> None:
    from anystep.contact_sheet import check_writable, free_name, save_image
    from anystep.data.folders import SHEET
    from anystep.data.overview import left_out, overview

    check_writable(options.out or DEFAULT_SHEET)
    sheet = overview(options.source, options.size, options.count)
    save_image(sheet.picture, out := options.out or free_name(DEFAULT_SHEET), software=SHEET)
    for line in (*sheet.passed_over.lines, *left_out(sheet.left_out)):
        print(line)
    print(f"wrote {out}: {sheet.shown} of {sheet.total} examples")


def run_prepare(options: argparse.Namespace) -> None:
    from anystep.data.prepare import Request, prepare_data

    for line in prepare_data(Request(**as_fields(options, Request))):
        print(line)
