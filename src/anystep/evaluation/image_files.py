"""Image files that are measured: written whole, and read with errors in one line."""

from pathlib import Path
from typing import Any

from PIL import Image

from anystep.data.example import BrokenExample
from anystep.data.images import read_image, upright_size
from anystep.errors import InputError
from anystep.files import check_regular, make_folder, replacing


def write_image(image: Image.Image, path: Path) -> None:
    """By the ending of its name; JPEG at the highest quality."""
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix in (".jpg", ".jpeg") else {}
    make_folder(path.parent)
    with replacing(path, durable=True) as part:
        image.save(part, "JPEG" if options else "PNG", **options)


def is_whole_image(path: Path) -> bool:
    """Whether a PNG of ours is there and was not cut off: its parts carry sums of themselves. JPEG has none."""
    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            image.verify()
        if path.suffix != ".png":
            with Image.open(path) as image:
                image.load()
    except OSError as error:
        if error.errno is not None:  # no more files may be opened, or the like: no damage
            raise
        return False
    except Exception:  # decoders meet damage with exceptions of every type
        return False
    return True


def file_stamp(path: Path) -> tuple[str, int, int]:
    """What changes whenever a file may have changed: its name, size and time; zeros of one that is not there."""
    if not path.exists():
        return str(path.resolve()), 0, 0
    found = path.stat()
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def open_image(path: Path) -> Image.Image:
    """Raises InputError: a missing or damaged file."""
    if not path.exists():
        raise InputError(f"no image {str(path)!r}: generate with the same command, or check the layout")
    try:
        return read_image(path, None)
    except BrokenExample as error:
        raise InputError(str(error)) from None


def image_header(path: Path) -> tuple[tuple[int, int], str]:
    """The size of an image when upright, and its format; only a TIFF is decoded for it."""
    check_regular(path)
    try:
        with Image.open(path) as image:
            return upright_size(image), str(image.format)
    except Exception:  # decoders meet damage with exceptions of every type
        raise InputError(f"{path}: not an image that can be read") from None
