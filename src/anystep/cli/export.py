"""`anystep export`: a model as ONNX and torch.export, in a folder that draws without PyTorch."""

import argparse

from anystep.cli.option_types import spec
from anystep.cli.options import Commands, add_options, as_fields


def add(commands: Commands) -> None:
    parser = commands.add_parser("export", help="a model as ONNX and torch.export, in a folder that draws by itself")
    option = parser.add_argument
    option("model", type=spec, metavar="MODEL", help="builtin, a folder, or a hub id")
    add_options(parser, "--out", help="the folder")
    option("--no-text-encoder", action="store_true", help="leave it out: captions are then given as its states")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from anystep.cli.output import print_facts
    from anystep.export import Request, export_model

    made = export_model(Request(**as_fields(options, Request)))
    print("largest differences from the model, in parts of its largest answer")
    print_facts({f"  {name}": f"{found:.1e}" for name, found in made.differences.items()}, 26)
    print(f"wrote {options.out}: draw with python {options.out / 'sample.py'}")
