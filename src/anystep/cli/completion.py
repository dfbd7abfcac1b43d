"""`anystep completion`: commands, options and recipes at the touch of the Tab key."""

import argparse
from typing import Any

from anystep.cli.options import Commands

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def add(commands: Commands) -> None:
    parser = commands.add_parser("completion", help="what a shell runs so that Tab completes")
    parser.add_argument("shell", choices=SHELLS, help='for example `eval "$(anystep completion bash)"` in ~/.bashrc')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode(["anystep"], shell=options.shell))


def complete(parser: Any) -> None:
    """Answer a shell, where one asks, and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options=False)
