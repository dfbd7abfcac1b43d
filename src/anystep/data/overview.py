"""What a source or a prepared folder holds: a contact sheet of examples, a few lines, and a picture of sizes."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from anystep.bounds import Count, Side, check
from anystep.contact_sheet import contact_sheet
from anystep.data.example import BrokenExample, PassedOver, passed_over
from anystep.data.latents import LatentShards
from anystep.data.sources import open_source
from anystep.errors import InputError, one_line
from anystep.files import replacing

COLUMNS = 10
SHOWN = 10  # reasons, and shapes, that are spelled out


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
    broken: list[str] = []
    # drawn at random, always the same: an even stride would meet some backgrounds and never others
    for index in sorted(random.Random(0).sample(range(len(source)), count)):
        try:
            example = source[index]
        except BrokenExample as error:
            broken.append(str(error))
            continue
        label = example.key if example.label is None else source.class_names[example.label]
        shown.append((example.image, example.captions[-1] if example.captions else label))
    if not shown:
        why = f"; the first failure: {broken[0]}" if broken else ""
        raise InputError(f"no example of {spec!r} could be read{why}")
    rows = [shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS)]
    labels = [row[0][1] if len(row) == 1 else f"{row[0][1]} … {row[-1][1]}" for row in rows]
    picture = contact_sheet([[image for image, _ in row] for row in rows], labels, None)
    return Overview(picture, len(shown), len(source), broken, passed_over(source))


def left_out(reasons: list[str]) -> list[str]:
    """How many examples were left out, and one line for each of the most frequent kinds of reasons."""
    lines = [f"left out: {len(reasons):,}"] if reasons else []
    kinds = Counter(reason.partition(": ")[2] or reason for reason in reasons)  # without the names of examples
    for kind, count in kinds.most_common(SHOWN):
        one = next(reason for reason in reasons if reason.endswith(kind))
        lines.append(f"  {one_line(one)}" + (f", and {count - 1:,} like it" if count > 1 else ""))
    return lines


def summary(made: LatentShards, factor: int) -> list[str]:
    """Counts by shape in pixels, what was cropped or enlarged, what images needed, and what was left out."""
    shapes = sorted(made.shapes.items(), key=lambda each: -each[1])
    sizes = [f"{columns * factor}x{rows * factor} {count:,}" for (rows, columns), count in shapes[:SHOWN]]
    more = f", and {len(shapes) - SHOWN} more shapes" if len(shapes) > SHOWN else ""
    lines = [
        f"{len(made):,} examples in {len(made.shards.index.shards)} shards, {made.stats.captioned:,} with captions, "
        f"{len(made.class_names)} classes",
        f"sizes: {', '.join(sizes)}{more}",
    ]
    stats = made.stats
    if stats.cropped > 0:
        mean = stats.cropped / max(1, stats.counted)
        lines.append(f"cropped: {mean:.1%} of an image on average, {stats.max_cropped:.1%} at most")
    if stats.enlarged:
        lines.append(f"enlarged: {stats.enlarged:,}, up to {stats.max_enlarged:.3g}x")
    lines += [f"{what}: {count:,}" for what, count in sorted(stats.conversions.items(), key=lambda each: -each[1])]
    return [*lines, *PassedOver(made.manifest.passed_over).lines, *left_out(stats.broken)]


def picture_of_sizes(made: LatentShards, factor: int, path: Path) -> bool:
    """Every shape as a disc at its width and height, as large as it is frequent; areas are curves.

    Tells whether it could be drawn: that needs matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    from matplotlib import pyplot

    counts = {(columns * factor, rows * factor): count for (rows, columns), count in made.shapes.items()}
    max_count, area = max(counts.values()), max(wide * high for wide, high in counts)
    figure, axes = pyplot.subplots(figsize=(6.4, 6.0), layout="constrained")
    discs = [20 + 900 * count / max_count for count in counts.values()]
    axes.scatter(*zip(*counts, strict=True), s=discs, alpha=0.55, color="#3b6ea5", edgecolor="white", zorder=3)
    for (width, height), count in sorted(counts.items(), key=lambda each: -each[1])[:SHOWN]:
        label = f"{width}x{height}\n{count:,}"
        axes.annotate(label, (width, height), fontsize=7, ha="center", va="center", zorder=4)
    limit = 1.15 * max(side for size in counts for side in size)
    for share in (1.0, 0.5):
        along = [limit * step / 200 for step in range(1, 201)]
        axes.plot(along, [share * area / each for each in along], color="0.8", lw=1, zorder=1)
        name = f"{math.sqrt(share * area):.0f}²"
        axes.annotate(name, (limit * 0.985, share * area / limit), fontsize=7, color="0.5", ha="right")
    axes.plot([0, limit], [0, limit], color="0.9", lw=1, zorder=1)
    axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="width in pixels", ylabel="height in pixels")
    axes.set_title(f"{len(made):,} images of {len(counts)} shapes", fontsize=10)
    axes.set_aspect("equal")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)
    pyplot.close(figure)
    return True
