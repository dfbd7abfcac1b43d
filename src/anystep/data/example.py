"""What every source of data yields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image


@dataclass(frozen=True)
class Example:
    """One image with what is known of it.

    Attributes:
        key: a name that is unique within the source and stable between runs.
        image: RGB.
        captions: equally good descriptions; training picks one at a time. Empty for class-conditional data.
        label: index into the source's `class_names`, or None.
        original: width and height before it was given its size, upright; None where it was drawn.
        notes: what was done to it that somebody may want to know, such as "turned upright".
    """

    key: str
    image: Image.Image
    captions: tuple[str, ...] = ()
    label: int | None = None
    original: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """A map-style collection of examples. Reading a damaged one raises `BrokenExample`."""

    @property
    def class_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class BrokenExample(Exception):
    """One example cannot be read. Says which and why; callers skip, count and report it."""
