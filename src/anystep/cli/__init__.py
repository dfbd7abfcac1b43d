"""The command line, thin: it reads arguments, calls the library and prints. Heavy imports wait until a command runs.

Each command is a module with `add(commands)`, which says its options, and what is run with them.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from anystep import __version__
from anystep.cli import (
    average,
    benchmark,
    compare,
    completion,
    convert,
    data,
    evaluate,
    export,
    generate,
    info,
    plan,
    plan_steps,
    recipes,
    scorers,
    serve,
    studio,
    train,
)
from anystep.cli.ctrl_c import interrupts
from anystep.cli.output import close_stdout, complain, say_loading
from anystep.cli.parser import OneLineParser
from anystep.console import prepare_streams, set_quiet
from anystep.errors import InputError

COMMANDS = (
    generate, train, plan, evaluate, plan_steps, benchmark, scorers, average, compare, convert, export,
    data, recipes, serve, studio, info, completion,
)  # fmt: skip
AT_ONCE = ("generate", "objectives", "recipes", "completion")  # which say that they have begun later, or never


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="anystep",
        description="Transition models: one set of weights generates in any number of steps.",
        epilog="`anystep COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"anystep {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 2 on bad input, 130 when interrupted."""
    prepare_streams()
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        completion.complete(parser)
    try:
        options, rest = parser.parse_known_args(arguments)
        if rest:
            parser.chosen.unknown(rest)
    except SystemExit as stop:  # argparse has said what is wrong, or has helped
        return int(stop.code or 0)
    verbose = getattr(options, "verbose", False)
    prepare_libraries(verbose)
    set_quiet(getattr(options, "quiet", False) or getattr(options, "json", False))
    options.typed = sys.argv[1:] if arguments is None else arguments
    options.did_you_mean = parser.chosen.did_you_mean
    try:
        with interrupts():
            if options.command not in AT_ONCE:
                say_loading(options)
            code = options.run(options)
            sys.stdout.flush()
    except InputError as error:
        if verbose:
            traceback.print_exc()
        return complain(str(error))
    except BrokenPipeError:  # whoever read our output has gone; nobody is left to be told
        close_stdout()
        return 141
    except OSError as error:  # a full disk, too many open files, no permission: wherever it came up
        close_stdout()
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}")
    except MemoryError:
        return complain("there is not enough memory: fewer or smaller images at a time take less")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        set_quiet(False)
    return int(code or 0)


def prepare_libraries(verbose: bool) -> None:
    """What has to be in the environment before PyTorch and diffusers are imported."""
    # large tensors in huge pages: faster to come by than small ones, and given back when freed (PyTorch, on Linux)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their notices are not for the reader of one line
        os.environ.setdefault(f"{library}_VERBOSITY", "info" if verbose else "critical")
    if not verbose:
        warnings.filterwarnings("ignore", module=r"(diffusers|transformers|huggingface_hub|peft)\.")
