"""A contact sheet of any source."""

import random

from PIL import Image

from anystep.contact_sheet import contact_sheet
from anystep.data.example import BrokenExample
from anystep.data.sources import open_source
from anystep.errors import InputError

COLUMNS = 10


def overview(spec: str, size: int, count: int) -> tuple[Image.Image, int, int]:
    """The sheet of at most `count` examples from all over a source, how many it shows, and how many there are.

    Examples that cannot be read are left out. Each row is labelled with the first caption or class of its first and
    last example.

    Raises:
        InputError: no such source, a count or size below 1, or nothing readable in it.
    """
    if count < 1 or size < 1:
        raise InputError(f"count {count} and size {size}: expected at least 1")
    source = open_source(spec, size)
    shown: list[tuple[Image.Image, str]] = []
    # drawn at random, always the same: an even stride would meet some backgrounds and never others
    for index in sorted(random.Random(0).sample(range(len(source)), min(count, len(source)))):
        try:
            example = source[index]
        except BrokenExample:
            continue
        name = example.captions[-1] if example.captions else source.class_names[example.label or 0]
        shown.append((example.image, name))
    if not shown:
        raise InputError(f"no example of {spec!r} could be read")
    rows = [shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS)]
    labels = [row[0][1] if len(row) == 1 else f"{row[0][1]} … {row[-1][1]}" for row in rows]
    return contact_sheet([[image for image, _ in row] for row in rows], labels, None), len(shown), len(source)
