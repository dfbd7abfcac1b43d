"""What commands print: facts, JSON, warnings and errors."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anystep.console import is_quiet
from anystep.errors import one_line
from anystep.files import read_text


def is_main() -> bool:
    """Whether this is the first of several processes, which speaks for all; `torchrun` numbers them."""
    return os.environ.get("RANK", "0") == "0"


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=1, default=str))


def print_file(path: Path) -> None:
    """The JSON of a report that has been written."""
    sys.stdout.write(read_text(path))


def print_facts(facts: Mapping[str, Any], width: int = 22) -> None:
    """A line each: a name, and what there is to say of it."""
    for name, told in facts.items():
        print(f"{name:{width}}{told}")


def print_dry_run(options: argparse.Namespace, found: Any) -> None:
    """What a dry run found, once of all processes."""
    from anystep.pipelines.dry_run import describe

    if is_main():
        print_json(found) if options.json else print(describe(found))


def warn(message: str) -> None:
    print(f"anystep: warning: {one_line(message)}", file=sys.stderr)


def complain(message: str) -> int:
    """One line on the error stream, of the first of several processes: what stops one stops all. Returns 2."""
    if is_main():
        print(f"anystep: error: {one_line(message)}", file=sys.stderr)
    return 2


def say_loading(options: argparse.Namespace) -> None:
    """Say at once that the command has begun, since importing PyTorch alone takes seconds.

    On a terminal the cursor goes back to the start of the line, which whatever comes next writes over. Elsewhere it is
    a line of the output: one line on the error stream is an error. Nothing is said where machines read, or by other
    processes than the first.
    """
    if is_quiet() or not is_main():
        return
    if sys.stderr.isatty():
        print("loading...", end="\r", file=sys.stderr, flush=True)
    else:
        with suppress(OSError, ValueError):  # not `say`, which drops what follows: that may be all that was asked for
            print(f"anystep {options.command}: loading", flush=True)


def close_stdout() -> None:
    """Python flushes it once more when it ends, which would fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
