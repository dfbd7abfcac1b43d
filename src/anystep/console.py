"""What is said while work goes on: a reader that has gone, or a full disk behind the output, stops no work."""

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether progress is left unsaid from now on; errors are always said."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether progress is left unsaid."""
    return _quiet


def prepare_streams() -> None:
    """Make streams that do not fail for what is said: those that were closed before we began are replaced by the null
    device, and letters that the output has not are escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # each gets its own number, so that no file of ours is where libraries print to
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":  # Python has the error stream escape
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str, error: bool = False) -> None:
    """Print a line at once, on the output or on the error stream; once that fails, its lines are dropped."""
    if _quiet and not error:
        return
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed, or a window without a console
        return
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a broken pipe, a terminal that is gone, a full disk; a stream that is closed
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def progress_bar(is_main: bool = True) -> "Progress":
    """A bar on the error stream where that is a terminal, which goes when the work is done.

    Args:
        is_main: whether this is the first of several processes, which speaks for all.
    """
    from rich.console import Console
    from rich.progress import Progress

    shown = is_main and not _quiet and sys.stderr is not None and sys.stderr.isatty()
    return Progress(transient=True, disable=not shown, console=Console(stderr=True))
