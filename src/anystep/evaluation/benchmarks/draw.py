"""Prompts to image files in a benchmark's layout: resumable, and shared among processes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from anystep.atomic import replacing, write_text
from anystep.errors import InputError
from anystep.pipelines.load import Model
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
    """How images are made: guidance None is the model's own."""

    guidance: float | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    ranks: Ranks = field(default_factory=Ranks)
    on_images: Callable[[int], None] = lambda images: None


def claim(out: Path, settings: Mapping[str, Any], ranks: Ranks) -> None:
    """Note what the images in `out` are made with, or refuse a folder whose images were made with something else.

    Raises:
        InputError: it cannot be written, or holds others.
    """
    path, problem = out / "settings.json", ""
    if ranks.first:
        try:
            out.mkdir(parents=True, exist_ok=True)
            known = json.loads(path.read_text("utf-8")) if path.exists() else settings
            changed = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
            if changed:
                problem = f"{str(out)!r} holds images that differ in {', '.join(changed)}: choose another --out"
            else:
                write_text(path, json.dumps(settings, indent=1) + "\n")
        except OSError as error:
            problem = f"cannot write to folder {str(out)!r}: {error.strerror}"
    (problem, *_) = ranks.tell(problem)
    if problem:
        raise InputError(problem)


def digest(content: Any) -> str:
    """Of prompts and the like, short."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def steps_folder(out: Path, steps: int) -> Path:
    """Of the images of one number of steps."""
    return out / f"steps-{steps:03d}"


def draw(model: Model, orders: Sequence[Order], steps: int, drawing: Drawing) -> None:
    """Make every image that is not there yet. A seed fixes an image, whatever batch or process makes it."""
    mine = orders[drawing.ranks.rank :: drawing.ranks.count]
    missing = [order for order in mine if not order.path.exists()]
    drawing.on_images(len(mine) - len(missing))
    by_size: dict[tuple[int, int] | None, list[Order]] = {}
    for order in missing:
        by_size.setdefault(order.size or drawing.size, []).append(order)
    for size, alike in by_size.items():
        for start in range(0, len(alike), drawing.batch):
            some = alike[start : start + drawing.batch]
            made = model.generate(
                [order.prompt for order in some], steps, [order.seed for order in some], size, drawing.guidance
            )
            for order, image in zip(some, made.images, strict=True):
                write_image(image, order.path)
            drawing.on_images(len(some))
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
