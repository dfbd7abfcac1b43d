"""`anystep convert`: released weights into a model's folder, and back."""

import argparse

from anystep.cli.option_types import input_file, output_file, spec
from anystep.cli.options import Commands, add_options, as_fields
from anystep.cli.parser import OneLineParser


def add(commands: Commands) -> None:
    parser = commands.add_parser("convert", help="released Transition Models weights into a model's folder, and back")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=OneLineParser)
    add_reference(actions.add_parser("reference", help="a model's folder of released weights"))
    add_to_reference(actions.add_parser("to-reference", help="a file with the released names of a model's network"))


def add_reference(parser: OneLineParser) -> None:
    option = parser.add_argument
    option(
        "--weights",
        type=input_file,
        required=True,
        metavar="FILE",
        help="t2i_model.bin, c2i_model_256.safetensors, ...",
    )
    add_options(parser, "--out", help="the model's folder")
    option(
        "--preset", type=spec, help="t2i-xl, c2i-xl-2, c2i-xl-1 or c2i-b-4 (default: by the file's name, or detected)"
    )
    option("--options", type=input_file, metavar="FILE", help="the reference's YAML, or its network options as JSON")
    option("--section", type=spec, help="which of several sets of weights in the file, for example ema")
    option("--vae", type=spec, help="a folder or hub id (default: that of the preset or the YAML)")
    option("--text-encoder", type=spec, help="a folder or hub id (default: that of the preset or the YAML)")
    option("--copy", action="store_true", help="put both into the folder, which then needs nothing else")
    parser.set_defaults(run=run_reference)


def add_to_reference(parser: OneLineParser) -> None:
    option = parser.add_argument
    option("--model", type=spec, required=True, help="a folder that was converted, or a hub id")
    option("--out", type=output_file, required=True, metavar="FILE", help="a .safetensors file")
    parser.set_defaults(run=run_to_reference)


def run_reference(options: argparse.Namespace) -> None:
    from anystep.pipelines.convert import Request, convert_reference

    made = convert_reference(Request(**as_fields(options, Request)))
    for remark in made.remarks:
        print(remark)
    print(f"wrote {options.out}: {made.parameters:,} parameters")


def run_to_reference(options: argparse.Namespace) -> None:
    from anystep.pipelines.convert import restore_reference

    print(f"wrote {options.out}: {restore_reference(options.model, options.out)} tensors")
