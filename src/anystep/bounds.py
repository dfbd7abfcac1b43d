"""The numbers that options and recipe fields take, each kind with its bounds, stated once.

A kind is a type annotation: pydantic checks recipe fields by it, `parse` checks options of the command line by it, and
`check` checks arguments of the Python interface by it. Importing this module costs nothing.
"""

import math
import operator
from collections.abc import Callable
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le, Lt

from anystep.errors import InputError

Count = Annotated[int, Ge(1), Le(10**9)]
"""How many there are of something: images, steps of training, epochs, devices."""
OptionalCount = Annotated[int, Ge(0), Le(10**9)]
"""A count, or 0 for never or none."""
SamplingSteps = Annotated[int, Ge(1), Le(10_000)]
"""Network evaluations of one image, unguided."""
Seed = Annotated[int, Ge(0), Le(2**62 - 1)]
"""Of noise; images of a batch are numbered on from it."""
Side = Annotated[int, Ge(1), Le(2**20)]
"""Of an image, in pixels."""
Width = Annotated[int, Ge(1), Le(65_536)]
"""Channels of a layer of a network."""
Depth = Annotated[int, Ge(0), Le(1000)]
"""Layers of a network, or of one of its parts."""
BatchSize = Annotated[int, Ge(1), Le(10**7)]
Threads = Annotated[int, Ge(1), Le(4096)]
Guidance = Annotated[float, Ge(0), Le(100)]
"""Guidance scale; 1 and below mean unguided."""
Share = Annotated[float, Ge(0), Le(1)]
"""A part of a whole."""
PositiveShare = Annotated[float, Gt(0), Le(1)]
Time = Annotated[float, Ge(0), Le(10**5)]
"""Of a transport."""
Aspect = Annotated[float, Ge(1), Le(1000)]
"""The longer side over the shorter one."""
LearningRate = Annotated[float, Gt(0), Le(1000)]
Coefficient = Annotated[float, Ge(0), Le(10**6)]
"""A weight of a term, or a factor."""
PositiveCoefficient = Annotated[float, Gt(0), Le(10**6)]


def expectation(kind: Any) -> str:
    """The numbers of a kind, in words: "a whole number from 1 to 10000"."""
    base, *limits = get_args(kind)
    what = "a whole number" if base is int else "a number"
    words = []
    for limit in limits:
        match limit:
            case Ge(low):
                words.append(f"from {low:g}" if base is float else f"from {low}")
            case Gt(low):
                words.append(f"above {low:g}")
            case Le(high):
                words.append(f"to {high:g}" if base is float else f"to {high}")
            case Lt(high):
                words.append(f"below {high:g}")
    return " ".join([what, *words]).replace("above 0 to", "above 0, up to")


def is_within(kind: Any, value: int | float) -> bool:
    """Whether a number is finite and within the bounds of a kind."""
    tests = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}
    limits = [(type(limit), getattr(limit, type(limit).__name__.lower())) for limit in get_args(kind)[1:]]
    whole = isinstance(value, int)  # whose conversion to float may overflow
    return (whole or math.isfinite(value)) and all(tests[each](value, limit) for each, limit in limits)


def parse(kind: Any) -> Callable[[str], Any]:
    """What argparse takes as the `type` of an option: text to a number of the kind.

    Raises:
        argparse.ArgumentTypeError: by the function it returns, in words that say what was expected.
    """
    import argparse

    def read(text: str) -> Any:
        try:
            value = get_args(kind)[0](text)
            if is_within(kind, value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected {expectation(kind)}")

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
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
