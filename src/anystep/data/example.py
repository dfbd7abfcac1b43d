"""What every source of data yields."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from anystep.errors import one_line


@dataclass(frozen=True)
class Example:
    """One image with what is known of it.

    Attributes:
        key: a name that is unique within the source and stable between runs.
        image: RGB.
        captions: equally good descriptions; training picks one at a time. Empty for class-conditional data.
        label: index into the source's `class_names`, or None.
        original: width and height before it was given its size, upright; None where it was drawn.
        conversions: what was done to it that somebody may want to know, such as "turned upright".
    """

    key: str
    image: Image.Image
    captions: tuple[str, ...] = ()
    label: int | None = None
    original: tuple[int, int] | None = None
    conversions: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """A map-style collection of examples. Reading a damaged one raises `BrokenExample`."""

    @property
    def class_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@runtime_checkable
class Traceable(Protocol):
    """A source that can tell whether its examples have changed since they were prepared."""

    def stamp(self, index: int) -> str:
        """What changes whenever the example may have changed; it costs no reading of images."""

    def digest(self, index: int) -> str:
        """What changes only when the example has changed; it may read the image."""


def merged_classes(lists: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The classes of several sources, where one name is one class, and the number there of each class of each source.

    Equal lists stay as they are, even with two classes of one name.
    """
    first, *others = [list(names) for names in lists]
    if all(each == first for each in others):
        return first, [list(range(len(first))) for _ in lists]
    merged = {name: number for number, name in enumerate(dict.fromkeys(sum(others, first)))}
    return list(merged), [[merged[name] for name in names] for names in lists]


MAX_CLASSES = 100_000  # a label above is a mistake: ImageNet-21k has 21,841


class BrokenExample(Exception):
    """One example cannot be read. Says which and why; callers skip, count and report it.

    Where a file could not be read, its cause is what the system said.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason))


def printable(text: str) -> str:
    """Text that UTF-8 can say: bytes of file names that are none, and halves of surrogate pairs, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def numbered_key(number: int) -> str:
    """The key of an example that has no name but its number."""
    return f"{number:09d}"


def digest_of(*parts: object) -> str:
    """A short digest of plain values, or of bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode("utf-8", "backslashreplace")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


class PassedOver(dict[str, tuple[int, str]]):
    """What lies in a source and is not used: of each kind, how many there are and the name of the first."""

    MAX_KINDS = 30

    def add(self, kind: str, name: str, count: int = 1) -> None:
        if kind not in self and len(self) >= self.MAX_KINDS:
            kind = "things of further kinds"
        before, first = self.get(kind, (0, printable(name)))
        self[kind] = (before + count, first)

    def update_from(self, other: Mapping[str, tuple[int, str]], prefix: str = "") -> None:
        """Count what another has counted; `prefix` goes in front of its names."""
        for kind, (count, first) in other.items():
            self.add(kind, f"{prefix}{first}", count)

    @property
    def lines(self) -> list[str]:
        """One line for each kind, the most frequent first."""
        kinds = sorted(self.items(), key=lambda item: -item[1][0])
        return [one_line(f"passed over: {count:,} {kind}, such as {first}") for kind, (count, first) in kinds]


class BaseSource(Sequence[Example]):
    """A source that checks its indices and can tell whether its examples have changed.

    A subclass gives `__len__`, `_read` and `stamp`; and `digest`, where an unchanged example may have another stamp.

    Attributes:
        passed_over: what else lies where the examples are.
    """

    class_names: Sequence[str] = ()

    def __init__(self) -> None:
        self.passed_over = PassedOver()

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(index)

    @abstractmethod
    def _read(self, index: int) -> Example:
        """The example of an index that is there."""

    @abstractmethod
    def stamp(self, index: int) -> str:
        """Tells cheaply whether an example has changed, as `Traceable` says."""

    def digest(self, index: int) -> str:
        return self.stamp(index)


def passed_over(source: Source) -> PassedOver:
    """What a source says that it does not use; nothing where it does not say."""
    return PassedOver(getattr(source, "passed_over", {}))
