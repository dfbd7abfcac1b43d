"""Images in Parquet files of the Hugging Face layout: a column of encoded images, one of captions or of classes."""

import bisect
import json
from collections import OrderedDict
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from anystep.data.example import BrokenExample, Example
from anystep.data.folders import CAPTION_KEYS, caption_texts, read_picture
from anystep.data.sizing import Size
from anystep.errors import InputError

GROUPS = 4  # row groups kept decoded: readers of one batch are neighbours


class ParquetSource:
    """All `.parquet` files below a folder, in the order of their names. The split is what the names begin with.

    Raises:
        InputError: no file, no column of images, or pyarrow is not installed.
    """

    def __init__(self, folder: str | Path, size: Size, split: str = "train") -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise InputError("a Parquet source needs pyarrow: pip install 'anystep[data]'") from None
        self.folder, self.size = Path(folder), size
        paths = sorted(self.folder.rglob("*.parquet"))
        paths = [path for path in paths if path.name.startswith(split)] or paths
        if not paths:
            raise InputError(f"{folder}: no .parquet file in it or below it")
        try:
            self._files = [parquet.ParquetFile(path) for path in paths]
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: {str(error).splitlines()[0]}") from None
        schema = self._files[0].schema_arrow
        columns = {name.lower(): name for name in schema.names}
        pictures = [columns[name] for name in ("image", "img", "jpg", "png") if name in columns]
        if not pictures:
            raise InputError(f"{paths[0]}: no column image among {', '.join(schema.names)}")
        classes = [columns[name] for name in ("label", "labels", "class", "fine_label") if name in columns]
        self._image, self._label = pictures[0], classes[0] if classes else None
        self._texts = [columns[name] for name in CAPTION_KEYS if name in columns]
        self.class_names: Sequence[str] = self._names(schema) if self._label is not None else []
        # (file, row group, first row) of every group
        self._groups = [
            (place, group, file.metadata.row_group(group).num_rows)
            for place, file in enumerate(self._files)
            for group in range(file.metadata.num_row_groups)
        ]
        self._ends = list(accumulate(rows for _, _, rows in self._groups))
        self._decoded: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        self._lock = Lock()

    def _names(self, schema: Any) -> list[str]:
        """Of the classes, from what Hugging Face writes into the schema; else as many numbers as the labels need."""
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = said.get("info", {}).get("features", {}).get(self._label, {}).get("names")
        if names:
            return list(names)
        largest = max(max(file.read(columns=[self._label]).column(0).to_pylist(), default=-1) for file in self._files)
        return [str(number) for number in range(largest + 1)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect.bisect_right(self._ends, index)
        first = self._ends[group - 1] if group else 0
        row = self._rows(group)[index - first]
        content = row[self._image]
        content = content.get("bytes") if isinstance(content, dict) else content
        if not content:
            raise BrokenExample(f"{self.folder}, row {index}: no image")
        picture = read_picture(BytesIO(content), self.size, f"{self.folder}, row {index}")
        said = {name: row[name] for name in self._texts if row[name]}
        captions = caption_texts(said) if said else ()
        if self._texts and not captions:
            raise BrokenExample(f"{self.folder}, row {index}: its caption is empty")
        label = row[self._label] if self._label is not None else None
        return Example(f"{index:09d}", picture.image, captions, label, *picture[1:])

    def _rows(self, group: int) -> list[dict[str, Any]]:
        with self._lock:
            if group not in self._decoded:
                while len(self._decoded) >= GROUPS:
                    self._decoded.popitem(last=False)
                place, number, _ = self._groups[group]
                wanted = [name for name in (self._image, self._label, *self._texts) if name is not None]
                self._decoded[group] = self._files[place].read_row_group(number, columns=wanted).to_pylist()
            return self._decoded[group]
