"""What is said while work goes on: a reader that has gone, or a full disk behind the output, stops no work."""

import os
import sys
from contextlib import suppress


def say(text: str, error: bool = False) -> None:
    """Print a line at once, on the output or on the error stream; once that fails, its lines are dropped."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a broken pipe, a terminal that is gone, a full disk; a stream that is closed
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
