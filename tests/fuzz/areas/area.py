"""What an area is, and the pictures and the small recipe that several of them are made of."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Area:
    """`make` writes a valid input into a folder, `act` reads it; `weight` is its share, by what it costs.

    `valid` says that what was made is read as it is; `own` that the folder is the command's output too, in which it may
    write.
    """

    make: Callable[[Path], None]
    act: Callable[[Path, Path, random.Random], Any]
    weight: float = 1.0
    seconds: int = 5
    own: bool = False
    valid: bool = True


def picture(size: int = 16, shade: int = 0) -> Any:
    from PIL import Image

    image = Image.new("RGB", (size, size), (shade % 256, 90, 200))
    image.paste((250, 20, 10), (2, 2, size // 2, size // 2))
    return image


def png(shade: int = 0, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture(shade=shade).save(out, form)
    return out.getvalue()


def make_captions(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(f"a thing, number {number}\nanother line\n")


def make_classes(folder: Path) -> None:
    for number in range(4):
        (folder / f"class {number % 2}").mkdir(exist_ok=True)
        (folder / f"class {number % 2}" / f"{number}.png").write_bytes(png(number))


TINY = {
    "data": {"size": 8},
    "model": {"preset": "c2i-test", "codec": "identity", "options": {"hidden_size": 16, "depth": 1}},
    "run": {"steps": 2, "batch_size": 2, "checkpoint_every": 1, "sample_every": 0, "threads": 1, "log_every": 1},
    "sample_steps": [1],
}
