"""Images that somebody else generated: one folder a number of steps, paired by the order of their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from anystep.codecs import to_uint8
from anystep.data.example import BrokenExample
from anystep.data.folders import find_images, read_image
from anystep.data.images import to_tensor
from anystep.errors import InputError
from anystep.evaluation.collect import Cost, Images
from anystep.evaluation.evaluate import Evaluation, Point


class ImageFolder(NamedTuple):
    """Images of one model at one number of steps."""

    model: str
    steps: int
    nfe: int
    path: Path


def parse_folder(text: str) -> ImageFolder:
    """`[MODEL@]STEPS[:NFE]=FOLDER`; the model is "images" where none is named, and NFE as many as steps."""
    told, equals, folder = text.partition("=")
    model, at, numbers = told.rpartition("@")
    steps, _, nfe = numbers.partition(":")
    whole = all(number.isdecimal() and int(number) for number in (steps, nfe or steps))
    if not (equals and folder and whole) or (at and not model):
        raise InputError(
            f"images {text!r}: expected STEPS=FOLDER, STEPS:NFE=FOLDER or MODEL@STEPS=FOLDER, for example 4:8=out/four"
        )
    return ImageFolder(model or "images", int(steps), int(nfe or steps), Path(folder))


def check_folders(folders: Sequence[ImageFolder], samples: int) -> tuple[int, int] | None:
    """The size of their images; None without folders.

    Raises:
        InputError: no folder, an empty one, too few images, different sizes, or one number of steps twice.
    """
    seen: set[tuple[str, int]] = set()
    size = None
    for folder in folders:
        if not folder.path.is_dir():
            raise InputError(f"images {str(folder.path)!r}: no such folder")
        names = find_images(folder.path)
        if len(names) < samples:
            raise InputError(f"{folder.path}: {len(names)} images, but --samples {samples} were asked for")
        if folder[:2] in seen:
            raise InputError(f"images of {folder.model!r} at {folder.steps} steps were given twice")
        seen.add(folder[:2])
        mine = _size(folder.path / names[0])
        if size not in (None, mine):
            raise InputError(f"{folder.path}: images of {mine[0]}x{mine[1]}, others are {size[0]}x{size[1]}")
        size = mine
    return size


def folder_points(evaluation: Evaluation, folders: Sequence[ImageFolder]) -> dict[str, list[Point]]:
    """By model, of the first `evaluation.samples` images of each folder.

    Raises:
        InputError: an image that cannot be read, or of another size than the first of its folder.
    """
    points: dict[str, list[Point]] = {}
    for model, steps, nfe, folder in folders:
        names = find_images(folder)[: evaluation.samples]
        size = _size(folder / names[0])

        def make(
            chunk: range, folder: Path = folder, names: list[str] = names, size: tuple[int, int] = size
        ) -> tuple[Images, Cost]:
            return torch.stack([_read(folder / names[number], size) for number in chunk]), Cost()

        stamps = [(name, (folder / name).stat().st_mtime_ns) for name in names]
        observed, _ = evaluation.collect(str(folder), evaluation.work(folder.resolve(), stamps), len(names), make)
        points.setdefault(model, []).append(Point(steps, nfe, observed))
    return points


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except OSError:
        raise InputError(f"{path}: not an image that can be read") from None


def _read(path: Path, size: tuple[int, int]) -> torch.Tensor:
    try:
        image = read_image(path, None)
    except BrokenExample as error:
        raise InputError(str(error)) from None
    if image.size != size:
        raise InputError(
            f"{path}: {image.width}x{image.height}, but the first image of its folder is {size[0]}x{size[1]}; "
            "all must have one size"
        )
    return to_uint8(to_tensor(image)[None])[0]
