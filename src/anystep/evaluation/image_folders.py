"""Images that somebody else generated: one folder a number of steps, paired by the order of their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from anystep.bounds import shown
from anystep.codecs import to_uint8
from anystep.data.example import BrokenExample
from anystep.data.folders import find_images
from anystep.data.images import ORIENTATION, read_image, to_tensor
from anystep.errors import InputError
from anystep.evaluation.collect import Cost, Images
from anystep.evaluation.evaluate import Evaluation, Point
from anystep.files import check_regular


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
    whole = all(number.isdecimal() and len(number) < 10 and int(number) for number in (steps, nfe or steps))
    if not (equals and folder and whole) or (at and not model):
        raise InputError(
            f"images {shown(text)}: expected STEPS=FOLDER, STEPS:NFE=FOLDER or MODEL@STEPS=FOLDER, for example "
            "4:8=out/four"
        )
    return ImageFolder(model or "images", int(steps), int(nfe or steps), Path(folder))


def check_folders(folders: Sequence[ImageFolder], samples: int) -> tuple[tuple[int, int] | None, list[str]]:
    """The size of their images, None without folders; and what to know before comparing them.

    Raises:
        InputError: no folder, an empty one, too few images, one that is none, different sizes, or one number of steps
            twice.
    """
    seen: set[tuple[str, int]] = set()
    size = None
    formats: dict[str, str] = {}
    for folder in folders:
        if not folder.path.is_dir():
            raise InputError(f"images {str(folder.path)!r}: no such folder")
        names = find_images(folder.path)
        if len(names) < samples:
            raise InputError(f"{folder.path}: {len(names)} images, but --samples {samples} were asked for")
        if folder[:2] in seen:
            raise InputError(f"images of {folder.model!r} at {folder.steps} steps were given twice")
        seen.add(folder[:2])
        size = _size(folder.path / names[0])[0] if size is None else size
        for name in names[:samples]:
            mine, form = _size(folder.path / name)
            if mine != size:
                raise InputError(
                    f"{folder.path / name}: {mine[0]}x{mine[1]}, but the first image is {size[0]}x{size[1]}; all must "
                    "have one size"
                )
            formats.setdefault(form, str(folder.path))
    notes = []
    if len(formats) > 1:
        told = ", ".join(f"{form} in {place}" for form, place in formats.items())
        notes.append(f"Images were kept in several formats ({told}): compression alone changes figures.")
    return size, notes


def folder_points(evaluation: Evaluation, folders: Sequence[ImageFolder]) -> dict[str, list[Point]]:
    """By model, of the first `evaluation.samples` images of each folder.

    Raises:
        InputError: an image that cannot be read, or of another size than the first of its folder.
    """
    points: dict[str, list[Point]] = {}
    for model, steps, nfe, folder in folders:
        names = find_images(folder)[: evaluation.samples]
        size, _ = _size(folder / names[0])

        def make(
            chunk: range, folder: Path = folder, names: list[str] = names, size: tuple[int, int] = size
        ) -> tuple[Images, Cost]:
            return torch.stack([_read(folder / names[number], size) for number in chunk]), Cost()

        def called(number: int, folder: Path = folder, names: list[str] = names) -> str:
            return str(folder / names[number])

        stamps = [(name, (folder / name).stat().st_mtime_ns) for name in names]
        work = evaluation.work(folder.resolve(), stamps)
        observed, _ = evaluation.collect(str(folder), work, len(names), make, called=called)
        points.setdefault(model, []).append(Point(steps, nfe, observed))
    return points


def _size(path: Path) -> tuple[tuple[int, int], str]:
    """As it is upright, and the format; without decoding it."""
    check_regular(path)
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return image.size[::-1] if turned else image.size, str(image.format)
    except Exception:  # decoders meet damage with exceptions of every type
        raise InputError(f"{path}: not an image that can be read") from None


def _read(path: Path, size: tuple[int, int]) -> torch.Tensor:
    try:
        image = read_image(path, None)
    except BrokenExample as error:
        raise InputError(str(error)) from None
    if image.size != size:
        raise InputError(f"{path}: {image.width}x{image.height}, was {size[0]}x{size[1]} a moment ago")
    return to_uint8(to_tensor(image)[None])[0]
