"""The one exception for input a user can correct, and what is no fault of theirs."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 280  # characters of a message, so that a whole line with the program's name stays below 300
NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)  # of the machine, and no fault of the file that was to be opened
# no fault of it either, but of memory, a disk, or a network that a folder lies behind
MACHINE_FAULTS = {
    *NO_MORE_FILES, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip


class InputError(ValueError):
    """Bad input: one line that names the value, what was expected and what to do. The command line exits with 2."""


def one_line(message: str, longest: int = LONGEST) -> str:
    """A message without line breaks or characters that a terminal would act on, cut in the middle where it is long."""
    text = " ".join("".join(each if each.isprintable() else " " for each in message).split())
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


def first_line(error: Exception) -> str:
    """The first line of what an exception of a library says, or its name where it says nothing."""
    said = getattr(error, "strerror", None) or str(error)
    said = re.sub(r" ?<[^<>]* object at 0x[0-9a-fA-F]+>", "", said)  # nobody knows what lies there in memory
    return next((line for line in said.splitlines() if line.strip()), type(error).__name__)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """A block in which whatever a library raises becomes an `InputError`: `what`, and the first line of the reason."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {first_line(error)}") from None


def is_machine_fault(error: BaseException | None) -> bool:
    """Whether an exception tells of the machine or its network, and nothing of the file that was to be read."""
    if isinstance(error, MemoryError | TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in MACHINE_FAULTS
