"""A contact sheet of any source."""

import random
from typing import NamedTuple

from PIL import Image

from anystep.bounds import Count, Side, check
from anystep.contact_sheet import contact_sheet
from anystep.data.example import BrokenExample, PassedOver, passed_over
from anystep.data.sources import open_source
from anystep.errors import InputError

COLUMNS = 10


class Overview(NamedTuple):
    """A contact sheet.

    Attributes:
        picture: the sheet.
        shown: how many examples it shows.
        total: how many the source has.
        left_out: why some of those that were drawn are not on it.
        passed_over: what else lies in the source.
    """

    picture: Image.Image
    shown: int
    total: int
    left_out: list[str]
    passed_over: PassedOver


def overview(spec: str, size: int, count: int) -> Overview:
    """At most `count` examples from all over a source; those that cannot be read are left out.

    Each row is labelled with the first caption or class of its first and last example.

    Raises:
        InputError: no such source, a count or size out of bounds, or nothing readable in it.
    """
    source = open_source(spec, check("size", size, Side))
    count = min(check("count", count, Count), len(source))
    shown: list[tuple[Image.Image, str]] = []
    left_out: list[str] = []
    # drawn at random, always the same: an even stride would meet some backgrounds and never others
    for index in sorted(random.Random(0).sample(range(len(source)), count)):
        try:
            example = source[index]
        except BrokenExample as error:
            left_out.append(str(error))
            continue
        label = example.key if example.label is None else source.class_names[example.label]
        shown.append((example.image, example.captions[-1] if example.captions else label))
    if not shown:
        why = f"; the first failure: {left_out[0]}" if left_out else ""
        raise InputError(f"no example of {spec!r} could be read{why}")
    rows = [shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS)]
    labels = [row[0][1] if len(row) == 1 else f"{row[0][1]} … {row[-1][1]}" for row in rows]
    picture = contact_sheet([[image for image, _ in row] for row in rows], labels, None)
    return Overview(picture, len(shown), len(source), left_out, passed_over(source))
