"""MNIST and Fashion-MNIST in the IDX files they are published as."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anystep.data.example import BaseSource, Example, digest_of
from anystep.data.sizing import Size, resize_and_crop, target_size
from anystep.errors import InputError
from anystep.files import check_regular

PREFIXES = {"train": "train", "test": "t10k"}
MAX_BYTES = 768 * 2**20  # bytes of an array; the largest set of this format, EMNIST, has 550 million
DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of bytes, plain or gzipped, of which no more is unpacked than its header announces.

    The format: 0, 0, 8 (for bytes), the number of dimensions; each dimension as big-endian uint32; the data.
    """
    check_regular(path)
    start = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(start)
            magic = bytes((0, 0, 8, dimensions))
            if header[:4] != magic:
                raise InputError(f"{path}: bad magic number {header[:4].hex()!r}, expected {magic.hex()!r}")
            shape = [int.from_bytes(header[place : place + 4], "big") for place in range(4, start, 4)]
            announced = math.prod(shape)
            if announced > MAX_BYTES:
                raise InputError(
                    f"{path}: {announced:,} bytes by its header, more than the {MAX_BYTES:,} that are read"
                )
            content = file.read(announced + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {error}") from None
    if len(header) < start or len(content) != announced:
        more = " or more" * (len(content) > announced)
        raise InputError(
            f"{path}: truncated or damaged: {len(header) + len(content)} bytes{more}, expected {start + announced}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def find_idx(folder: Path, stem: str, dimensions: int) -> Path:
    """The file of either spelling, plain or gzipped."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{packed}" for mark in "-." for packed in ("", ".gz")]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder}: no {names[0]} in it (nor {', '.join(names[1:])})")


class IdxSource(BaseSource):
    """Labelled grey images as RGB. Raises `InputError` where a file is missing or damaged.

    Classes are named as Fashion-MNIST's where the folder is, for example `fashion-mnist` or `FashionMNIST/raw`, and as
    digits elsewhere.
    """

    def __init__(self, folder: str | Path, split: str = "train", size: Size = None) -> None:
        super().__init__()
        if split not in PREFIXES:
            raise InputError(f"split {split!r} of {folder}: expected one of {list(PREFIXES)}")
        self.folder, self.split, self.size = Path(folder), split, size
        images = find_idx(self.folder, f"{PREFIXES[split]}-images", 3)
        labels = find_idx(self.folder, f"{PREFIXES[split]}-labels", 1)
        self._images, self._labels = read_idx(images, 3), read_idx(labels, 1)
        # torchvision keeps the files one folder further down, in FashionMNIST/raw
        fashion = any("fashion" in part.lower() for part in self.folder.resolve().parts[-2:])
        self.class_names: Sequence[str] = FASHION if fashion else DIGITS
        if len(self._images) != len(self._labels):
            raise InputError(f"{labels}: {len(self._labels)} labels, but {images.name} has {len(self._images)} images")
        if self._labels.max(initial=0) >= len(self.class_names):
            raise InputError(f"{labels}: label {self._labels.max()}, expected 0 to {len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> Example:
        image = Image.fromarray(self._images[index]).convert("RGB")
        return Example(
            f"{self.split}-{index:05d}",
            resize_and_crop(image, target_size(*image.size, self.size)),
            label=int(self._labels[index]),
        )

    def stamp(self, index: int) -> str:
        return digest_of(self._images[index].tobytes(), self._images.shape, int(self._labels[index]))
