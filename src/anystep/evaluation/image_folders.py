"""Images that somebody else generated: one folder a number of steps, paired by the order of their names."""

from pathlib import Path

import torch
from PIL import Image

from anystep.codecs import to_uint8
from anystep.data.example import BrokenExample
from anystep.data.folders import find_images, read_image
from anystep.data.images import to_tensor
from anystep.errors import InputError
from anystep.evaluation.collect import Cost, Images
from anystep.evaluation.evaluate import Evaluation, Point


def parse_folder(text: str) -> tuple[int, int, Path]:
    """`STEPS=FOLDER` or `STEPS:NFE=FOLDER` as steps, evaluations and folder; without NFE they are as many as steps."""
    numbers, equals, folder = text.partition("=")
    steps, _, nfe = numbers.partition(":")
    if not (equals and folder and steps.isdecimal() and (nfe or steps).isdecimal() and int(steps)):
        raise InputError(f"images {text!r}: expected STEPS=FOLDER or STEPS:NFE=FOLDER, for example 4:8=out/four")
    return int(steps), int(nfe or steps), Path(folder)


def folder_points(evaluation: Evaluation, folders: list[tuple[int, int, Path]]) -> list[Point]:
    """The first `evaluation.samples` images of each folder.

    Raises:
        InputError: no folder, an empty one, too few images, one that cannot be read, or images of several sizes.
    """
    points = []
    for steps, nfe, folder in folders:
        if not folder.is_dir():
            raise InputError(f"images {str(folder)!r}: no such folder")
        names = find_images(folder)
        if len(names) < evaluation.samples:
            raise InputError(f"{folder}: {len(names)} images, but --samples {evaluation.samples} were asked for")
        names = names[: evaluation.samples]
        size = _size(folder / names[0])

        def make(
            chunk: range, folder: Path = folder, names: list[str] = names, size: tuple[int, int] = size
        ) -> tuple[Images, Cost]:
            return torch.stack([_read(folder / names[number], size) for number in chunk]), Cost()

        stamps = [(name, (folder / name).stat().st_mtime_ns) for name in names]
        observed, _ = evaluation.collect(str(folder), evaluation.work(folder.resolve(), stamps), len(names), make)
        points.append(Point(steps, nfe, observed))
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
