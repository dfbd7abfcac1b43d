"""Images in Parquet files of the Hugging Face layout: a column of encoded images, one of captions or of classes."""

import bisect
import re
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from anystep.data.captions import CAPTION_KEYS, caption_texts
from anystep.data.example import MAX_CLASSES, BaseSource, BrokenExample, Example, digest_of, numbered_key, printable
from anystep.data.folders import walk
from anystep.data.images import read_example
from anystep.data.sizing import Size
from anystep.errors import InputError, first_line
from anystep.files import parse_json

# what names of files and folders call the splits
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# what is counted of columns that may hold captions under another name
UNREAD_TEXT = f"Parquet columns of text that are not read: captions are in {', '.join(CAPTION_KEYS)}"
GROUPS = 4  # row groups kept decoded: readers of one batch are neighbours


def split_of(name: str, wanted: str) -> str | None:
    """The split that a relative path tells of, a common one or the wanted one; None where it tells of none.

    It is a word of the file's name (`data-train-00.parquet`), else of that of the nearest folder (`train/0.parquet`).
    """
    known = {**SPLITS, wanted: wanted}
    for part in reversed(PurePosixPath(name.lower()).with_suffix("").parts):
        if part.startswith(wanted):
            return wanted
        if found := next((known[word] for word in re.split(r"[\W\d_]+", part) if word in known), None):
            return found
    return None


class ParquetSource(BaseSource):
    """The `.parquet` files of a split below a folder, in the order of their names.

    They are all where no name tells of a split. The one split of a folder, such as a benchmark's, serves as training.

    Raises:
        InputError: no file, none of the split, no column of images, columns of other types, or pyarrow is not
            installed.
    """

    def __init__(self, folder: str | Path, size: Size, split: str = "train") -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise InputError("a Parquet source needs pyarrow: pip install 'anystep[data]'") from None
        super().__init__()
        self.folder, self.size = Path(folder), size
        names = sorted(walk(self.folder, self.passed_over))
        every = [name for name in names if name.lower().endswith(".parquet")]
        chosen = self._of_split(every, split)
        for name in sorted(set(every) - set(chosen)):
            self.passed_over.add("Parquet files of other splits", name)
        for name in sorted(set(names) - set(every)):
            self.passed_over.add("files that are no Parquet", name)
        if not chosen:
            raise InputError(f"{folder}: no .parquet file in it or below it")
        self._paths = [self.folder / name for name in chosen]
        self._files = []
        for path in self._paths:
            try:
                self._files.append(parquet.ParquetFile(path))
            except Exception as error:  # pyarrow raises many kinds
                raise InputError(f"{path}: not a Parquet file that can be read: {first_line(error)}") from None
        schema = self._files[0].schema_arrow
        columns = {name.lower(): name for name in schema.names}
        pictures = [columns[name] for name in ("image", "img", "jpg", "png") if name in columns]
        if not pictures:
            raise InputError(f"{self._paths[0]}: no column image among {', '.join(schema.names)}")
        classes = [columns[name] for name in ("label", "labels", "class", "fine_label") if name in columns]
        self._image, self._label = pictures[0], classes[0] if classes else None
        self._texts = [columns[name] for name in CAPTION_KEYS if name in columns]
        self._wanted = [name for name in (self._image, self._label, *self._texts) if name is not None]
        for name in [each for each in schema.names if each not in self._wanted]:
            text = _is_text(schema.field(name).type)
            self.passed_over.add(UNREAD_TEXT if text else "Parquet columns that are not read", name)
        for path, file in zip(self._paths, self._files, strict=True):
            self._check_columns(path, file.schema_arrow)
        self.class_names: Sequence[str] = self._names(schema) if self._label is not None else []
        self._stats = [path.stat() for path in self._paths]
        # (file, row group, first row) of every group
        self._groups = [
            (place, group, file.metadata.row_group(group).num_rows)
            for place, file in enumerate(self._files)
            for group in range(file.metadata.num_row_groups)
        ]
        self._ends = list(accumulate(rows for _, _, rows in self._groups))
        self._rows, self._lock = lru_cache(GROUPS)(self._read_group), Lock()

    def _of_split(self, names: Sequence[str], wanted: str) -> list[str]:
        """Those files that are of the wanted split. Raises InputError where there are others instead."""
        wanted = SPLITS.get(wanted, wanted)
        splits = {name: split_of(name, wanted) for name in names}
        chosen = [name for name in names if splits[name] == wanted]
        others = sorted({split for split in splits.values() if split})
        if not chosen and others and (wanted != "train" or len(set(splits.values())) > 1):
            raise InputError(
                f"{self.folder}: no Parquet file of split {wanted}, but of {', '.join(others)}: rename the files that "
                f"are meant to {wanted}-…"
            )
        return chosen or list(names)

    def _check_columns(self, path: Path, schema: Any) -> None:
        """Each file must have the columns of the first, of types that can be what they are called."""
        from pyarrow import types

        def is_image(kind: Any) -> bool:
            if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            return str(kind) in ("binary", "large_binary", "binary_view")

        wanted = [(self._image, is_image, "the bytes of image files")]
        wanted += [] if self._label is None else [(self._label, types.is_integer, "whole numbers")]
        wanted += [(name, _is_text, "text") for name in self._texts]
        for name, fits, expected in wanted:
            if name not in schema.names:
                raise InputError(f"{path}: no column {name}, which {self._paths[0].name} has")
            kind = schema.field(name).type
            if not fits(kind):
                raise InputError(f"{path}: column {name} holds {kind}, expected {expected}")

    def _names(self, schema: Any) -> list[str]:
        """Names of the classes, which Hugging Face writes into the schema; else as many numbers as the labels need."""
        import pyarrow.compute as compute

        noted = (schema.metadata or {}).get(b"huggingface", b"{}")
        found = parse_json(noted, f"{self._paths[0]}, what Hugging Face notes")
        for key in ("info", "features", self._label, "names"):
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
            return [printable(name) for name in found]
        largest = -1
        for path, file in zip(self._paths, self._files, strict=True):
            try:
                labels = file.read(columns=[self._label]).column(0)
                fitting = compute.filter(labels, compute.less(labels, MAX_CLASSES))
            except Exception as error:  # pyarrow raises many kinds
                raise InputError(f"{path}: column {self._label} cannot be read: {first_line(error)}") from None
            largest = max(largest, compute.max(fitting).as_py() or 0) if len(fitting) else largest
        return [str(number) for number in range(largest + 1)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _read(self, index: int) -> Example:
        row = self._row(index)
        where = f"{self.folder}, row {index}"
        content = row[self._image]
        content = content.get("bytes") if isinstance(content, dict) else content
        if not content:
            raise BrokenExample(f"{where}: no image")
        label = None if self._label is None else row[self._label]
        if self._label is not None and (label is None or not 0 <= label < len(self.class_names)):
            raise BrokenExample(f"{where}: class {label}, expected 0 to {len(self.class_names) - 1}")
        try:
            captions = caption_texts({name: row[name] for name in self._texts if row[name]})
            if self._texts and not captions:
                raise ValueError("its caption is empty")
        except ValueError as error:
            raise BrokenExample(f"{where}: {error}") from None
        return read_example(BytesIO(content), self.size, numbered_key(index), captions, label, where)

    def _row(self, index: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._ends, index)
        with self._lock:
            return self._rows(group)[index - self._ends[group]]  # counted from the end of the group

    def _read_group(self, group: int) -> list[dict[str, Any]]:
        place, number, _ = self._groups[group]
        try:
            rows: list[dict[str, Any]] = self._files[place].read_row_group(number, columns=self._wanted).to_pylist()
        except Exception as error:  # pyarrow raises many kinds
            raise BrokenExample(f"{self._paths[place]}, row group {number}: {first_line(error)}") from error
        return rows

    def stamp(self, index: int) -> str:
        place = self._groups[bisect.bisect_right(self._ends, index)][0]
        found = self._stats[place]
        return digest_of(index, self._paths[place].name, found.st_size, found.st_mtime_ns)

    def digest(self, index: int) -> str:
        try:
            return digest_of(*self._row(index).items())
        except BrokenExample as error:
            return digest_of(str(error))


def _is_text(kind: Any) -> bool:
    """Whether a type of pyarrow is text, or several of it."""
    kind = getattr(kind, "value_type", kind)  # of lists of every kind, and of dictionaries
    return str(kind) in ("string", "large_string", "string_view", "null")
