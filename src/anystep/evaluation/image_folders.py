"""Images that somebody else generated: one folder a number of steps, paired by the order of their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from anystep.bounds import shown
from anystep.data.folders import find_images
from anystep.data.images import to_pixels
from anystep.errors import InputError
from anystep.evaluation.collect import Cost, collect
from anystep.evaluation.evaluate import Point
from anystep.evaluation.image_files import file_stamp, image_header, open_image
from anystep.evaluation.metrics.base import Images
from anystep.evaluation.settings import Evaluation


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


class ListedFolder(NamedTuple):
    """A folder of images, looked through once: the names of the images that count, and their size when upright."""

    folder: ImageFolder
    names: list[str]
    size: tuple[int, int]


def list_folders(folders: Sequence[ImageFolder], samples: int) -> tuple[list[ListedFolder], list[str]]:
    """The first `samples` images of each folder, and what to know before comparing them.

    Raises:
        InputError: no folder, an empty one, too few images, one that is none, different sizes, or one number of steps
            twice.
    """
    listed: list[ListedFolder] = []
    formats: dict[str, str] = {}
    for folder in folders:
        if not folder.path.is_dir():
            raise InputError(f"images {str(folder.path)!r}: no such folder")
        names = find_images(folder.path)
        if len(names) < samples:
            raise InputError(f"{folder.path}: {len(names)} images, but --samples {samples} were asked for")
        if any(folder[:2] == each.folder[:2] for each in listed):
            raise InputError(f"images of {folder.model!r} at {folder.steps} steps were given twice")
        size = listed[0].size if listed else None
        for name in names[:samples]:
            this, form = image_header(folder.path / name)
            size = size or this
            if this != size:
                raise InputError(
                    f"{folder.path / name}: {this[0]}x{this[1]}, but the first image is {size[0]}x{size[1]}; all must "
                    "have one size"
                )
            formats.setdefault(form, str(folder.path))
        assert size is not None
        listed.append(ListedFolder(folder, names[:samples], size))
    if len(formats) < 2:
        return listed, []
    places = ", ".join(f"{form} in {place}" for form, place in formats.items())
    return listed, [f"Images were kept in several formats ({places}): compression alone changes figures."]


def folder_points(evaluation: Evaluation, folders: Sequence[ListedFolder]) -> dict[str, list[Point]]:
    """The points of each model. Raises `InputError`: an image cannot be read, or has not the size that was listed."""
    points: dict[str, list[Point]] = {}
    for (model, steps, nfe, folder), names, size in folders:
        paths = [folder / name for name in names]

        def make(chunk: range, paths: list[Path] = paths, size: tuple[int, int] = size) -> tuple[Images, Cost]:
            return torch.stack([_read(path, size) for path in paths[chunk.start : chunk.stop]]), Cost()

        chunks = evaluation.chunk_folder(*map(file_stamp, paths))
        images, _ = collect(evaluation, str(folder), chunks, len(names), make, image_names=list(map(str, paths)))
        points.setdefault(model, []).append(Point(steps, nfe, images))
    return points


def _read(path: Path, size: tuple[int, int]) -> torch.Tensor:
    image = open_image(path)
    if image.size != size:
        raise InputError(f"{path}: {image.width}x{image.height}, was {size[0]}x{size[1]} a moment ago")
    return to_pixels(image)
