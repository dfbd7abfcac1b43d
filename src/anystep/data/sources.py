"""One way to name any source of data."""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from anystep.bounds import did_you_mean
from anystep.data.art import ArtSource
from anystep.data.example import Example, Source, Traceable, merged_classes, passed_over
from anystep.data.folders import ClassFolderSource, ImageFolderSource
from anystep.data.idx import IdxSource
from anystep.data.parquet import ParquetSource
from anystep.data.scenes import SceneSource
from anystep.data.sizing import Fixed, ResolutionLimits, check_memory
from anystep.data.webdataset import WebDatasetSource
from anystep.errors import InputError

SHARDS = "shards:"
DRAWN: dict[str, Callable[..., Source]] = {"builtin": ArtSource, "scenes": SceneSource}
# The empty prefix fits every spec, so it comes last.
FOLDERS: dict[str, Callable[..., Source]] = {
    SHARDS: WebDatasetSource,
    "idx:": IdxSource,
    "classes:": ClassFolderSource,
    "parquet:": ParquetSource,
    "": ImageFolderSource,
}
OPTIONS = {
    "builtin": ("vocabulary", "split", "styles"),
    "scenes": ("count",),
    "idx:": ("split",),
    "parquet:": ("split",),
}
POSSIBLE = (
    "builtin (captioned vector art), scenes (composed of it), FOLDER (captioned images), "
    "classes:FOLDER (one subfolder a class), idx:FOLDER (MNIST or Fashion-MNIST), parquet:FOLDER (Hugging Face) or "
    "shards:FOLDER_OR_URL (WebDataset tars)"
)


class ConcatSource(ConcatDataset[Example]):
    """Several sources end to end; classes of one name are one class."""

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__(sources)  # type: ignore[arg-type]
        self.class_names, self._numbers = merged_classes([source.class_names for source in sources])

    def __getitem__(self, index: int) -> Example:
        place, index = self._place_of(index)
        example: Example = self.datasets[place][index]
        return example if example.label is None else replace(example, label=self._numbers[place][example.label])

    def stamp(self, index: int) -> str:
        place, index = self._place_of(index)
        source = self.datasets[place]
        return source.stamp(index) if isinstance(source, Traceable) else ""

    def digest(self, index: int) -> str:
        place, index = self._place_of(index)
        source = self.datasets[place]
        return source.digest(index) if isinstance(source, Traceable) else ""

    def _place_of(self, index: int) -> tuple[int, int]:
        """Which source an example is of, and its number there."""
        place = bisect_right(self.cumulative_sizes, index)
        return place, index - (self.cumulative_sizes[place - 1] if place else 0)


class SubsetSource(Subset[Example]):
    """`count` examples of a source, spread evenly over it; all of them where there are no more."""

    def __init__(self, source: Source, count: int) -> None:
        spread = range(len(source)) if count >= len(source) else [n * len(source) // count for n in range(count)]
        super().__init__(source, spread)  # type: ignore[arg-type]
        self.source, self.class_names, self.passed_over = source, source.class_names, passed_over(source)

    def stamp(self, index: int) -> str:
        return self.source.stamp(self.indices[index]) if isinstance(self.source, Traceable) else ""

    def digest(self, index: int) -> str:
        return self.source.digest(self.indices[index]) if isinstance(self.source, Traceable) else ""


def open_source(spec: str, size: Fixed | ResolutionLimits, **options: Any) -> Source:
    """The source that `spec` names, with images of one size, or of their own shape within limits.

    Args:
        spec: `builtin`, `scenes`, the path of a folder of captioned images, `classes:FOLDER`, `idx:FOLDER`,
            `parquet:FOLDER` or `shards:FOLDER_OR_URL`.
        options: of the source itself: `vocabulary`, `split` and `styles` of `builtin`, `split` of `idx` and `parquet`.

    Raises:
        InputError: for an unknown spec, a missing folder, or what the source finds wrong in it.
    """
    if not isinstance(size, ResolutionLimits):  # which enlarge nothing
        check_memory(size)
    prefix = spec if spec in DRAWN else next(prefix for prefix in FOLDERS if spec.startswith(prefix))
    for name in options:
        if name not in OPTIONS.get(prefix, ()):
            takes = ", ".join(OPTIONS.get(prefix, ())) or "none"
            raise InputError(f"data source {spec!r} takes no option {name!r}, but {takes}")
    if spec in DRAWN:
        return DRAWN[spec](size, **options)
    name = spec.removeprefix(prefix)
    if prefix == SHARDS:
        return WebDatasetSource(name, size)
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"data source {spec!r}: {error}") from None
    if not name or not os.path.isdir(folder):
        meant = "" if prefix else did_you_mean(spec, DRAWN)
        raise InputError(f"data source {spec!r}: no such folder; {meant}possible sources: {POSSIBLE}")
    return FOLDERS[prefix](folder, size=size, **options)
