"""Prompts to image files in a benchmark's layout: resumable, and shared among processes."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

from PIL import Image

from anystep.data.example import BrokenExample
from anystep.data.images import read_image
from anystep.errors import InputError
from anystep.evaluation.collect import is_whole_image
from anystep.files import check_settings, make_folder, read_json, remove_parts, replacing, write_json
from anystep.fingerprint import text_digest
from anystep.pipelines.load import Model
from anystep.pipelines.scheduler import Planning
from anystep.ranks import Ranks


@dataclass(frozen=True)
class Order:
    """One image to make: where it goes, of what, from which seed, in what size (the model's own when None)."""

    path: Path
    prompt: str | int
    seed: int
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Drawing:
    """How images are made: guidance and plan None are the model's own."""

    guidance: float | None = None
    plan: Planning | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    ranks: Ranks = field(default_factory=Ranks)
    on_images: Callable[[int], None] = lambda images: None


def made_before(out: Path) -> tuple[str, ...]:
    """What tells a benchmark's folder of the time before folders were marked: its settings, or a report of scores."""
    for name, keys in (("settings.json", {"benchmark", "model", "prompts"}), ("report.json", {"benchmark", "points"})):
        with suppress(InputError):
            if keys <= read_json(out / name).keys():
                return (name,)
    return ()


def agree(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what the images in `out` are made with, or refuse a folder whose images were made with something else.

    Raises:
        InputError: it holds others, or nobody knows which.
    """
    path = out / "settings.json"
    try:
        # images that nothing is known of may be of anything
        known = read_json(path) if path.exists() else {} if any(out.glob("steps-*")) else settings
    except InputError:
        raise InputError(
            f"{path}: damaged, so nobody knows what the images beside it are: choose another --out"
        ) from None
    check_settings(out, "images that differ", known, settings)
    write_json(path, settings)
    remove_parts(out)


def digest(content: Any) -> str:
    """Of prompts and the like, short."""
    return text_digest(json.dumps(content, default=str))


def steps_folder(out: Path, steps: int) -> Path:
    """Of the images of one number of steps."""
    return out / f"steps-{steps:03d}"


def draw(model: Model, orders: Sequence[Order], steps: int, drawing: Drawing) -> None:
    """Make every image that is not there yet.

    Batches are the same whoever makes them and whatever is there already: other batch mates change last bits.
    """
    by_size: dict[tuple[int, int] | None, list[Order]] = {}
    for order in orders:
        by_size.setdefault(order.size or drawing.size, []).append(order)
    batches = [
        (size, alike[start : start + drawing.batch])
        for size, alike in by_size.items()
        for start in range(0, len(alike), drawing.batch)
    ]
    with drawing.ranks.together():
        for size, batch in batches[drawing.ranks.rank :: drawing.ranks.count]:
            missing = [not is_whole_image(order.path) for order in batch]
            if any(missing):
                made = model.generate(
                    [order.prompt for order in batch], steps, [order.seed for order in batch], size, drawing.guidance,
                    plan=drawing.plan,
                )  # fmt: skip
                for order, image in compress(zip(batch, made.images, strict=True), missing):
                    write_image(image, order.path)
            drawing.on_images(len(batch))


def write_image(image: Image.Image, path: Path) -> None:
    """By the ending of its name; JPEG at the highest quality."""
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix in (".jpg", ".jpeg") else {}
    make_folder(path.parent)
    with replacing(path, durable=True) as part:
        image.save(part, "JPEG" if options else "PNG", **options)


def open_image(path: Path) -> Image.Image:
    """Raises InputError: a missing or damaged file."""
    if not path.exists():
        raise InputError(f"no image {str(path)!r}: generate with the same command, or check the layout")
    try:
        return read_image(path, None)
    except BrokenExample as error:
        raise InputError(str(error)) from None
