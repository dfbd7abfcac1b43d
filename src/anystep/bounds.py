"""The numbers that options and recipe fields take, each kind with its bounds, stated once.

A kind is a type annotation: pydantic checks recipe fields by it, `parse` checks options of the command line by it, and
`check` checks arguments of the Python interface by it. Importing this module costs nothing.
"""

import difflib
import inspect
import math
import operator
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from anystep.errors import InputError

Count = Annotated[int, Ge(1), Le(10**9)]
"""How many there are of something: images, steps of training, epochs, devices."""
OptionalCount = Annotated[int, Ge(0), Le(10**9)]
"""A count, or 0 for never or none."""
SamplingSteps = Annotated[int, Ge(1), Le(10_000)]
"""Network evaluations of one image, unguided."""
Seed = Annotated[int, Ge(0), Le(2**62 - 1)]
"""The seed of an image's noise; images of a batch are numbered on from it."""
Side = Annotated[int, Ge(1), Le(2**20)]
"""One side of an image, in pixels."""
Width = Annotated[int, Ge(1), Le(65_536)]
"""Channels of a layer of a network."""
Depth = Annotated[int, Ge(0), Le(1000)]
"""Layers of a network, or of one of its parts."""
LayerCount = Annotated[int, Ge(1), Le(1000)]
"""Blocks of a transformer."""
OptionalWidth = Annotated[int, Ge(0), Le(65_536)]
"""A width, or 0 for none."""
Patch = Annotated[int, Ge(1), Le(256)]
"""Latent pixels along one side of a token."""
Ratio = Annotated[float, Gt(0), Le(64)]
"""A hidden width over the width outside."""
Frequency = Annotated[float, Gt(0), Le(10_000)]
"""The frequency of a sinusoid, in radians per unit of time."""
KeyGrid = Annotated[int, Ge(2), Le(2**20)]
"""Tokens along the longer side that give keys and values."""
Images = Annotated[int, Ge(1), Le(10_000)]
"""Images of one prompt."""
BatchSize = Annotated[int, Ge(1), Le(10**7)]
Threads = Annotated[int, Ge(1), Le(4096)]
Guidance = Annotated[float, Ge(0), Le(100)]
"""Guidance scale; 1 and below mean unguided."""
Share = Annotated[float, Ge(0), Le(1)]
"""A part of a whole."""
PositiveShare = Annotated[float, Gt(0), Le(1)]
InnerShare = Annotated[float, Ge(0.001), Le(0.99)]
"""A part of a whole that leaves something on both sides."""
TimeShift = Annotated[float, Ge(0.01), Le(100)]
"""The shift of the times of a plan."""
Time = Annotated[float, Ge(0), Le(10**5)]
"""A time of a transport."""
Aspect = Annotated[float, Ge(1), Le(1000)]
"""The longer side over the shorter one."""
Port = Annotated[int, Ge(0), Le(65_535)]
"""A TCP port; 0 is a free one."""
Seconds = Annotated[float, Gt(0), Le(86_400)]
Milliseconds = Annotated[float, Ge(0), Le(10_000)]
Mebibytes = Annotated[float, Gt(0), Le(10_000)]
LearningRate = Annotated[float, Gt(0), Le(1000)]
Coefficient = Annotated[float, Ge(0), Le(10**6)]
"""A weight of a term, or a factor."""
PositiveCoefficient = Annotated[float, Gt(0), Le(10**6)]
Decay = Annotated[float, Ge(0), Lt(1)]
"""The decay of a moving average."""
AverageLength = Annotated[float, Ge(0.005), Le(0.25)]
"""The length of a power-function average: the standard deviation of its profile, as a part of the run until then."""
Real = Annotated[float, Ge(-(10**6)), Le(10**6)]
"""Any number that 32-bit arithmetic holds."""


# what a limit of a kind is called, and how it is tested
LIMITS = {Ge: ("from", operator.ge), Gt: ("above", operator.gt), Le: ("to", operator.le), Lt: ("to below", operator.lt)}


def _limits(kind: Any) -> list[tuple[str, Callable[[Any, Any], bool], Any]]:
    return [(*LIMITS[type(each)], getattr(each, type(each).__name__.lower())) for each in get_args(kind)[1:]]


def expectation(kind: Any) -> str:
    """The numbers of a kind, in words: "a whole number from 1 to 10000"."""
    whole = get_args(kind)[0] is int
    words = [f"{word} {bound if whole else f'{bound:g}'}" for word, _, bound in _limits(kind)]
    return " ".join(["a whole number" if whole else "a number", *words]).replace("above 0 to", "above 0, up to")


def is_within(kind: Any, value: int | float | Decimal) -> bool:
    """Whether a number is finite and within the bounds of a kind."""
    # a whole number's conversion to a float may overflow
    finite = value.is_finite() if isinstance(value, Decimal) else isinstance(value, int) or math.isfinite(value)
    return finite and all(fits(value, bound) for _, fits, bound in _limits(kind))


@cache
def parse(kind: Any) -> Callable[[str], Any]:
    """What argparse takes as the `type` of an option: text in ASCII to a number of the kind; `1e3` is a whole number.

    Raises:
        argparse.ArgumentTypeError: by the function it returns, in words that say what was expected.
    """
    import argparse

    def read(text: str) -> Any:
        try:
            value = Decimal(text)
            if text.isascii() and is_within(kind, value):
                number = get_args(kind)[0](value)
                if is_within(kind, number) and (isinstance(number, float) or number == value):
                    return number
        except InvalidOperation:
            pass
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected {expectation(kind)}")

    read.kind = kind  # type: ignore[attr-defined]  # for the tests' table of all options
    return read


def check(name: str, value: Any, kind: Any) -> Any:
    """The value as a plain number of the kind; numbers of numpy and torch pass, truth values and text do not.

    Raises:
        InputError: it is none, or out of bounds.
    """
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = operator.index(value) if get_args(kind)[0] is int else float(value)
        if is_within(kind, number):
            return number
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise InputError(f"{name} {shown(value)}: expected {expectation(kind)}")


def shown(value: Any, longest: int = 60) -> str:
    """A value as it can stand in a message of one line, cut where it is long."""
    return cut(repr(value), longest)


def cut(text: str, longest: int = 60) -> str:
    """Text without its middle where it is long: paths are told apart by their ends."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


MAX_NAME = 1000  # characters of the name of a model, a source or a file
MAX_TEXT = 100_000  # of a prompt
NO_CONTROLS = "without control characters"


def check_name(value: str) -> str:
    """What a model, a source or the like is called; empty, too long or not printable, it is an `InputError`."""
    if not 0 < len(value) <= MAX_NAME or _has_controls(value):
        raise InputError(f"{shown(value)}: expected a name or path of 1 to {MAX_NAME} characters, {NO_CONTROLS}")
    return value


def check_text(value: str) -> str:
    """Free text, such as a prompt: lines and tabs are part of it, other control characters are an `InputError`."""
    if len(value) > MAX_TEXT or _has_controls(value.translate(dict.fromkeys(map(ord, "\n\r\t")))):
        raise InputError(f"{shown(value)}: expected text of at most {MAX_TEXT:,} characters, {NO_CONTROLS}")
    return value


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(each) == "Cc" for each in text)


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Which of the names known was meant by one that is none, to stand before what is expected; empty if none is."""
    near = difflib.get_close_matches(word[:100], list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}? " if near else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none of those known: the one that was meant, or all of them."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(word[:100], names, n=1)
    return f", did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"


def check_options(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a recipe for a function's keyword arguments, whose annotations say which values they take.

    Raises:
        InputError: a name that the function does not take, or a value that is not of its annotation.
    """
    hints = get_type_hints(function, include_extras=True)
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    for name in given:
        if name not in known:
            raise InputError(f"unknown {what}.{cut(name)}{nearest(name, known)}")
    return {name: fitted(f"{what}.{name}", value, hints[name]) for name, value in given.items()}


def fitted(name: str, value: Any, annotation: Any) -> Any:
    """A plain value as an annotation wants it: a kind of numbers, a truth value, choices, or None beside these.

    Raises:
        InputError: it is of another type, or out of bounds.
    """
    if get_origin(annotation) is Annotated:
        return check(name, int(value) if isinstance(value, float) and value.is_integer() else value, annotation)
    if get_origin(annotation) is Literal and value not in (choices := get_args(annotation)):
        raise InputError(f"{name} {shown(value)}: expected one of {', '.join(map(str, choices))}")
    if annotation is bool and not isinstance(value, bool):
        raise InputError(f"{name} {shown(value)}: expected true or false")
    if annotation is bool or get_origin(annotation) is Literal:
        return value
    if value is None and NoneType in get_args(annotation):
        return None
    (inner,) = (each for each in get_args(annotation) if each is not NoneType)
    return fitted(name, value, inner)
