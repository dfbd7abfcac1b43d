"""A user's own images: a folder of captioned images, or one subfolder for each class."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from anystep.data.example import BrokenExample, Example
from anystep.data.sizing import Size, fit, target
from anystep.errors import InputError

ORIENTATION = ExifTags.Base.Orientation
CAPTION_KEYS = ("captions", "text", "caption")
# Pillow recognises these but cannot draw them without further programs.
RECOGNISED_ONLY = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow, with whatever plugins are registered, can read."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, form in known if form in Image.OPEN and form not in RECOGNISED_ONLY)


def find_images(folder: Path) -> list[str]:
    """Relative POSIX paths of all images below `folder`, sorted. Hidden files and folders are passed over."""
    relative = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    names = sorted(
        name.as_posix()
        for name in relative
        if name.suffix.lower() in image_suffixes() and not any(part.startswith(".") for part in name.parts)
    )
    if not names:
        raise InputError(f"{folder}: no image in it or below it; .png, .jpg, .webp and all else Pillow reads would do")
    return names


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as RGB: turned upright by its EXIF tag, 16 bits scaled to 8, transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is anyone's guess; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it at 255
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


class Picture(NamedTuple):
    """An image as it is used, its width and height before, and what was done to it."""

    image: Image.Image
    original: tuple[int, int]
    notes: tuple[str, ...]


def told(image: Image.Image) -> tuple[str, ...]:
    """What an opened image needs done to it."""
    found = []
    if getattr(image, "is_animated", False):
        found.append("the first of several frames")
    if image.getexif().get(ORIENTATION, 1) != 1:
        found.append("turned upright")
    if image.mode.startswith("I"):
        found.append("16 bits to 8")
    if image.mode == "CMYK":
        found.append("CMYK to RGB")
    if image.has_transparency_data:
        found.append("transparency on white")
    return tuple(found)


def read_picture(file: Path | BytesIO, size: Size, name: str = "") -> Picture:
    """The RGB image in a file, given its size. Raises `BrokenExample`, which calls it `name`."""
    name = name or str(file)
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            original = image.size[::-1] if turned else image.size
            notes, goal = told(image), target(*original, size)
            if size is not None:  # a large JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size
                wanted = goal[::-1] if turned else goal
                image.draft(None, (2 * wanted[0], 2 * wanted[1]))
            return Picture(fit(to_rgb(image), goal), original, notes)
    except UnidentifiedImageError:
        raise BrokenExample(f"{name}: not an image that Pillow can read") from None
    except Exception as error:  # decoders meet damage with exceptions of every type
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenExample(f"{name}: {reason}") from error


def read_image(file: Path | BytesIO, size: Size, name: str = "") -> Image.Image:
    """`read_picture`'s image."""
    return read_picture(file, size, name).image


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, stripped; empty ones stay, so that indices are line numbers."""
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def caption_texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions that a row of metadata gives, one or a list. Raises StopIteration without any."""
    found = next(row[key] for key in CAPTION_KEYS if key in row)
    return tuple(text.strip() for text in ([found] if isinstance(found, str) else found) if text.strip())


def read_metadata(path: Path) -> dict[str, tuple[str, ...]]:
    """Captions by image name from a `metadata.jsonl`; several rows of one image are alternative captions."""
    captions: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line:
            continue
        try:
            row: Any = json.loads(line)
            name = PurePosixPath(row["file_name"]).as_posix()
            texts = caption_texts(row)
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
            raise InputError(
                f"{path}, line {number}: expected an object with file_name and text, caption or captions (a list)"
            ) from None
        captions[name] = captions.get(name, ()) + texts
    return captions


def read_captions(folder: Path, names: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The captions of each named image, from `metadata.jsonl` or else from the lines of the `.txt` beside it.

    And what is wrong with those whose `.txt` is empty or not UTF-8. One that has none at all is an InputError.
    """
    metadata = folder / "metadata.jsonl"
    captions = read_metadata(metadata) if metadata.exists() else {}
    if strangers := sorted(captions.keys() - set(names)):
        raise InputError(f"{metadata}: {listing(strangers)} named there, but no such image is in {folder}")
    wrong: dict[str, str] = {}
    for name in names:
        text = (folder / name).with_suffix(".txt")
        if name in captions or not text.exists():
            continue
        try:
            captions[name] = tuple(line for line in read_lines(text) if line)
        except InputError:
            wrong[name] = f"{text.name} is not UTF-8"
        else:
            if not captions[name]:
                wrong[name] = f"{text.name} holds no caption"
    without = [name for name in names if not captions.get(name)]
    # some that are wrong are left out one by one; one that is not there, or none that is right, is a mistake
    if missing := without if len(without) == len(names) else [name for name in without if name not in wrong]:
        raise InputError(
            f"{folder}: no caption for {listing(missing)}; write {PurePosixPath(missing[0]).with_suffix('.txt')} "
            "(one caption a line) or a row with file_name and text in metadata.jsonl"
        )
    return captions, wrong


def listing(names: Sequence[str]) -> str:
    """`a.png`, or `a.png and 2 more`."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


class _FolderSource:
    """Images below `folder`, keyed by relative path; a subclass finds their names and what is known of them.

    `__getitem__` raises `BrokenExample` for an image that cannot be read.
    """

    class_names: Sequence[str] = ()
    captions: Mapping[str, tuple[str, ...]] = {}
    labels: Mapping[str, int] = {}
    wrong: Mapping[str, str] = {}
    names: Sequence[str]

    def __init__(self, folder: str | Path, size: Size) -> None:
        self.folder = Path(folder)
        self.size = size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        if name in self.wrong:
            raise BrokenExample(f"{self.folder / name}: {self.wrong[name]}")
        picture = read_picture(self.folder / name, self.size)
        return Example(name, picture.image, self.captions.get(name, ()), self.labels.get(name), *picture[1:])


class ImageFolderSource(_FolderSource):
    """Captioned images. Raises `InputError` where there is no image or one has no caption."""

    def __init__(self, folder: str | Path, size: Size) -> None:
        super().__init__(folder, size)
        self.names = find_images(self.folder)
        self.captions, self.wrong = read_captions(self.folder, self.names)
        stems = Counter(str(PurePosixPath(name).with_suffix("")) for name in self.names)
        self._twins = {stem for stem, count in stems.items() if count > 1}

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        if str(PurePosixPath(example.key).with_suffix("")) not in self._twins:
            return example
        return replace(example, notes=(*example.notes, "shares its name with another image"))


class ClassFolderSource(_FolderSource):
    """One subfolder of images for each class. Raises `InputError` where there is none or one has no image."""

    def __init__(self, folder: str | Path, size: Size) -> None:
        super().__init__(folder, size)
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        self.class_names = sorted(path.name for path in folders if path.is_dir() and not path.name.startswith("."))
        if not self.class_names:
            raise InputError(f"{folder}: no subfolder in it; expected one for each class, named as the class is")
        self.labels = {
            f"{class_name}/{name}": label
            for label, class_name in enumerate(self.class_names)
            for name in find_images(self.folder / class_name)
        }
        self.names = list(self.labels)
