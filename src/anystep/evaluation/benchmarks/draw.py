"""Prompts to image files in a benchmark's layout: resumable, and shared among processes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from anystep.errors import InputError
from anystep.files import replacing, write_text
from anystep.pipelines.load import Model
from anystep.ranks import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """One image to make: where it goes, of what, from which seed, in what size (the model's own when None)."""

    path: Path
    prompt: str | int
    seed: int
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Drawing:
    """How images are made: guidance None is the model's own."""

    guidance: float | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    ranks: Ranks = field(default_factory=Ranks)
    on_images: Callable[[int], None] = lambda images: None


def in_first(ranks: Ranks, act: Callable[[], T]) -> T | None:
    """What the first process makes while the others wait. What is wrong there is raised in all: they would wait on."""
    made, problem = None, ""
    if ranks.first:
        try:
            made = act()
        except InputError as error:
            problem = str(error)
    (problem, *_) = ranks.tell(problem)
    if problem:
        raise InputError(problem)
    return made


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what the images in `out` are made with, or refuse a folder whose images were made with something else.

    Raises:
        InputError: it cannot be written, or holds others.
    """
    path = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        # images that nothing is known of may be of anything
        known = json.loads(path.read_text("utf-8")) if path.exists() else {} if any(out.glob("steps-*")) else settings
        changed = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
        if changed:
            raise InputError(f"{str(out)!r} holds images that differ in {', '.join(changed)}: choose another --out")
        write_text(path, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to folder {str(out)!r}: {error.strerror}") from None
    except json.JSONDecodeError:
        raise InputError(
            f"{path}: damaged, so nobody knows what the images beside it are: choose another --out"
        ) from None


def digest(content: Any) -> str:
    """Of prompts and the like, short."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


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
    for size, batch in batches[drawing.ranks.rank :: drawing.ranks.count]:
        missing = [not order.path.exists() for order in batch]
        if any(missing):
            made = model.generate(
                [order.prompt for order in batch], steps, [order.seed for order in batch], size, drawing.guidance
            )
            for order, image in compress(zip(batch, made.images, strict=True), missing):
                write_image(image, order.path)
        drawing.on_images(len(batch))
    drawing.ranks.wait()


def write_image(image: Image.Image, path: Path) -> None:
    """By the ending of its name; JPEG at the highest quality."""
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix in (".jpg", ".jpeg") else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        image.save(part, "JPEG" if options else "PNG", **options)


def open_image(path: Path) -> Image.Image:
    """Raises InputError: a missing or damaged file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"no image {str(path)!r}: generate with the same command, or check the layout") from None
    except OSError:
        raise InputError(f"{path}: not an image that can be read") from None
