"""What tests of several modules make and compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from anystep.data.example import BrokenExample, Example
from anystep.data.prepare import Encoders

RED = (255, 0, 0)


def save_image(path: Path, caption: str | None = None, size: tuple[int, int] = (8, 6), colour: object = RED) -> Path:
    """An image of one colour, with its caption beside it where there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)  # type: ignore[arg-type]
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file of a folder by its name, but for the picture of sizes, which libraries draw."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "sizes.png"}


class Colours(Sequence[Example]):
    """Forty plain images; every tenth is broken."""

    class_names = ["even", "odd"]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if index % 10 == 9:
            raise BrokenExample(f"{index}.png: broken")
        captions = () if index == 4 else (f"number {index}", f"{index}, a comma\tand a tab")
        image = Image.new("RGB", (4, 4), (index, 0, 255))
        image.putpixel((0, 0), (200, 0, 0))
        return Example(str(index), image, captions, index % 2)


def encode(images: Tensor) -> Tensor:
    """Two channels of every third pixel."""
    return images[:, :2, ::3, ::3]


def encoders(**options: Any) -> Encoders:
    """Encoders whose codec is `encode`."""
    return Encoders(encode, {"codec": "every third"}, **options)
