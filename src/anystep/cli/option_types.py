"""What options of the command line take that are no numbers: text, names, sizes, web pages, files and folders.

Each is the `type` of an argparse option: it says what was expected, before anything is loaded. Whether a file holds
what it should is said by what reads it.
"""

import argparse
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from anystep.bounds import Real, Side, check_name, check_text, cut, parse, shown
from anystep.errors import InputError

STANDARD_INPUT = Path("-")
ORIGIN = re.compile(r"([a-z][a-z\d+.-]*)://([a-z\d_.-]+|\[[\d:.a-f]+\])(?::(\d{1,5}))?/?", re.ASCII | re.IGNORECASE)
DEFAULT_PORTS = {"http": "80", "https": "443"}


def text(value: str) -> str:
    """Free text, such as a prompt."""
    return _checked(check_text, value)


def spec(value: str) -> str:
    """What a model, a source or the like is called; `~` at its start is the home folder."""
    _checked(check_name, value)
    try:
        return str(Path(value).expanduser()) if value.startswith("~") else value
    except RuntimeError:
        wrong = "there is no such home folder; expected a name or path"
        raise argparse.ArgumentTypeError(f"{shown(value)}: {wrong}") from None


def weighted_spec(value: str) -> tuple[str, float]:
    """A `spec` and the scale after its last colon, where a number is there and all of it is no path; else 1."""
    whole, (name, _, scale) = spec(value), value.rpartition(":")
    if name and re.fullmatch(r"[-+.\de]+", scale) and not os.path.exists(whole):
        return spec(name), parse(Real)(scale)
    return whole, 1.0


def _checked(check: Callable[[str], str], value: str) -> str:
    try:
        return check(value)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(value: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT`, or one number for a square."""
    width, cross, height = value.lower().partition("x")
    try:
        if not cross:
            return (side := parse(Side)(width)), side
        if width.isdecimal() and height.isdecimal():
            return parse(Side)(width), parse(Side)(height)
    except argparse.ArgumentTypeError:
        pass
    raise argparse.ArgumentTypeError(
        f"{shown(value)}: expected WIDTHxHEIGHT in pixels, or one number for a square, for example 64x64"
    )


def square(value: str) -> int:
    """The side of a size that is a square."""
    width, height = size(value)
    if width != height:
        raise argparse.ArgumentTypeError(f"{shown(value)}: expected a square here, for example {width}x{width}")
    return width


def origin(value: str) -> str:
    """Where a web page is from, in the form in which browsers say it: `https://host`, and its port if not the usual."""
    if value == "*":
        raise argparse.ArgumentTypeError(
            "'*': any page that one of your users opens could then ask in their name; expected pages by scheme and host"
        )
    found = ORIGIN.fullmatch(value)
    if found is None or int(found[3] or 0) > 65535:
        raise argparse.ArgumentTypeError(
            f"{shown(value)}: expected scheme://host or scheme://host:port, for example https://example.com"
        )
    scheme, host, port = found[1].lower(), found[2].lower(), found[3]
    return f"{scheme}://{host}" if port in (None, DEFAULT_PORTS.get(scheme)) else f"{scheme}://{host}:{int(port)}"


def input_file(value: str) -> Path:
    """A file that is there. Devices and the like may never end, and are refused."""
    return _there(value, "file", stat.S_ISREG, "it is no regular file")


def input_text(value: str) -> Path:
    """A file that is there, or `STANDARD_INPUT`."""
    return STANDARD_INPUT if value == str(STANDARD_INPUT) else input_file(value)


def input_folder(value: str) -> Path:
    """A folder that is there."""
    return _there(value, "folder", stat.S_ISDIR, "it is no folder")


def _there(value: str, what: str, is_such: Callable[[int], bool], otherwise: str) -> Path:
    path, mode = _place(value)
    if mode is None or not is_such(mode):
        wrong = f"there is no such {what}" if mode is None else otherwise
        raise argparse.ArgumentTypeError(f"{shown(value)}: {wrong}; expected a {what} to read")
    return path


def output_file(value: str) -> Path:
    """A file to write, in a folder that is there."""
    path, mode = _place(value)
    if mode is not None and not stat.S_ISREG(mode):
        raise argparse.ArgumentTypeError(f"{shown(value)}: cannot write there, it is no regular file")
    if not path.parent.is_dir():
        missing = cut(str(path.parent))
        raise argparse.ArgumentTypeError(f"{shown(value)}: cannot write there, there is no folder {missing}")
    return path


def output_folder(value: str) -> Path:
    """A folder to write to, which may have to be made."""
    path, _ = _place(value)
    above = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists() or each.is_symlink())
    if not above.is_dir():
        raise argparse.ArgumentTypeError(f"{shown(value)}: cannot write there, {shown(str(above))} is no folder")
    return path


def _place(value: str) -> tuple[Path, int | None]:
    """A path and the mode of what is there; None where nothing is."""
    path = Path(spec(value))
    try:
        return path, path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path, None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{shown(value)}: {error.strerror}; expected a path") from None
