"""Tar files of the WebDataset layout, read by number.

An uncompressed tar is an indexable file: `index.safetensors` beside the tars says of every record in which of them it
lies, where each of its fields begins, how long it is and what its CRC-32 must be. Local folders and everything that
fsspec opens (`s3://bucket/folder`, `gs://`, `hf://`) are read alike.
"""

import io
import json
import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anystep.data.art import cache_folder
from anystep.data.example import BrokenExample
from anystep.errors import InputError
from anystep.files import replacing

INDEX = "index.safetensors"
UNKNOWN = -1  # a checksum or label nobody has noted; the size of a field that a record lacks
TABLES = ("shard", "offsets", "sizes", "checksums", "labels", "grids")
OPEN_FILES = 128


@dataclass(frozen=True)
class Record:
    """One entry of a shard: the bytes of each of its fields, by extension."""

    key: str
    fields: Mapping[str, bytes]
    label: int = UNKNOWN
    grid: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Index:
    """Where the records of some shards lie; one row a record, one column a field.

    Attributes:
        shards: names of the tar files, with their sizes in bytes.
        fields: names of the columns.
        shard: (records,) which of the files.
        offsets, sizes, checksums: (records, fields), in bytes; the last CRC-32.
        labels: (records,).
        grids: (records, 2), rows and columns of what the records hold; 0 where nobody knows.
    """

    shards: dict[str, int]
    fields: list[str]
    shard: Tensor
    offsets: Tensor
    sizes: Tensor
    checksums: Tensor
    labels: Tensor
    grids: Tensor

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name) for name in TABLES}
        with replacing(path) as part:
            # one entry: several are written in an order that changes from process to process
            save_file(tensors, part, metadata={"holds": json.dumps([self.shards, self.fields])})

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Mapped into memory, not read: the processes of a machine share the pages."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            shards, fields = json.loads(file.metadata()["holds"])
        tensors = load_file(path)
        return cls(shards, fields, *(tensors[name] for name in TABLES))

    @classmethod
    def joined(cls, parts: Sequence["Index"]) -> "Index":
        """Of several groups of shards; all must have the same fields."""
        shards = {name: size for part in parts for name, size in part.shards.items()}
        before = [sum(len(each.shards) for each in parts[:place]) for place in range(len(parts))]
        shard = torch.cat([part.shard + first for part, first in zip(parts, before, strict=True)])
        rest = (torch.cat([getattr(part, name) for part in parts]) for name in TABLES[1:])
        return cls(shards, parts[0].fields, shard, *rest)


def write_shard(path: Path, records: Iterable[Record]) -> Index:
    """A tar whose bytes depend on the records alone: no time, no owner."""
    offsets: list[list[int]] = []
    sizes: list[list[int]] = []
    checksums: list[list[int]] = []
    labels: list[int] = []
    grids: list[tuple[int, int]] = []
    fields: list[str] = []
    with replacing(path) as part:
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for record in records:
                fields = fields or list(record.fields)
                rows = []
                for name in fields:
                    content = record.fields[name]
                    entry = tarfile.TarInfo(f"{record.key}.{name}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                    padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    rows.append((tar.offset - padded, len(content), zlib.crc32(content)))
                for column, values in zip((offsets, sizes, checksums), zip(*rows, strict=True), strict=True):
                    column.append(list(values))
                labels.append(record.label)
                grids.append(record.grid)
        size = part.stat().st_size
    return _index({path.name: size}, fields, [0] * len(labels), offsets, sizes, checksums, labels, grids)


def _index(
    shards: dict[str, int],
    fields: list[str],
    shard: list[int],
    offsets: list[list[int]],
    sizes: list[list[int]],
    checksums: list[list[int]],
    labels: list[int],
    grids: list[tuple[int, int]],
) -> Index:
    shape = (len(labels), len(fields))
    begin, length, check = (torch.tensor(rows, dtype=torch.int64).view(shape) for rows in (offsets, sizes, checksums))
    places = torch.tensor(shard, dtype=torch.int32)
    sides = torch.tensor(grids, dtype=torch.int32).view(-1, 2)
    return Index(shards, fields, places, begin, length, check, torch.tensor(labels), sides)


def scan(filesystem: Any, root: str, names: Mapping[str, int]) -> Index:
    """The index of tars that somebody else made, from their headers.

    Raises:
        InputError: not a tar, or one that ends in the middle.
    """
    found: list[tuple[int, dict[str, tuple[int, int]], int]] = []
    for place, name in enumerate(names):
        records: dict[str, tuple[dict[str, tuple[int, int]], list[int]]] = {}
        try:
            with filesystem.open(f"{root}/{name}", "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for entry in tar:
                    if not entry.isfile():
                        continue
                    folder, base = PurePosixPath(entry.name).parent, PurePosixPath(entry.name).name
                    stem, _, extension = base.partition(".")
                    key = f"{folder}/{stem}"
                    if extension.lower() in records.get(key, ({}, []))[0]:  # another record of the same name
                        records[f"{key}\0{len(records)}"] = records.pop(key)
                    fields, label = records.setdefault(key, ({}, [UNKNOWN]))
                    fields[extension.lower()] = (entry.offset_data, entry.size)
                    if entry.offset_data + entry.size > names[name]:
                        raise tarfile.ReadError("it ends in the middle of a file")
                    if extension == "cls":
                        opened = tar.extractfile(entry)
                        label[0] = int(opened.read()) if opened is not None else UNKNOWN
        except (tarfile.TarError, OSError, ValueError) as error:
            raise InputError(f"{root}/{name}: not an uncompressed tar of the WebDataset layout: {error}") from None
        found += [(place, fields, label[0]) for fields, label in records.values()]
    columns = sorted({extension for _, fields, _ in found for extension in fields})
    lie = [[fields.get(extension, (0, UNKNOWN)) for extension in columns] for _, fields, _ in found]
    return _index(
        dict(names),
        columns,
        [place for place, _, _ in found],
        [[offset for offset, _ in row] for row in lie],
        [[size for _, size in row] for row in lie],
        [[UNKNOWN] * len(columns) for _ in found],
        [label for _, _, label in found],
        [(0, 0)] * len(found),
    )


class Shards:
    """The records of a folder of tars, by number.

    Args:
        url: of the folder: a path, or whatever fsspec opens.

    Raises:
        InputError: no such folder, no tar in it, tars that are not as the index says, or a file system that needs a
            package.
    """

    def __init__(self, url: str) -> None:
        from fsspec.implementations.local import LocalFileSystem

        self._filesystem, self.root = _open(url)
        try:
            entries = self._filesystem.ls(self.root, detail=True)
        except OSError as error:
            raise InputError(f"shards {url!r}: {str(error).splitlines()[0] if str(error) else 'not there'}") from None
        self.url = url
        self.local = isinstance(self._filesystem, LocalFileSystem)
        sizes = {PurePosixPath(entry["name"]).name: int(entry["size"]) for entry in entries}
        tars = {name: size for name, size in sorted(sizes.items()) if name.endswith(".tar")}
        if not tars:
            raise InputError(f"shards {url!r}: no .tar file in it")
        self.index = self._find_index(tars, INDEX in sizes)
        self._column = {name: place for place, name in enumerate(self.index.fields)}
        self._names = list(self.index.shards)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.index.labels)

    @property
    def fields(self) -> list[str]:
        return self.index.fields

    def read(self, number: int, fields: Sequence[str] | None = None) -> dict[str, bytes]:
        """The bytes of a record's fields, those that it has. May be called from several threads.

        Raises:
            BrokenExample: they cannot be read, or are not those that were written.
        """
        place = int(self.index.shard[number])
        found = {}
        for name in self.fields if fields is None else fields:
            column = self._column[name]
            offset, size, checksum = (
                int(table[number, column]) for table in (self.index.offsets, self.index.sizes, self.index.checksums)
            )
            if size == UNKNOWN:
                continue
            try:
                content = self._range(place, offset, size)
            except OSError as error:
                raise BrokenExample(f"{self._where(number)}: {error.strerror or error}") from None
            if len(content) < size or checksum not in (UNKNOWN, zlib.crc32(content)):
                raise BrokenExample(f"{self._where(number)}: {name} is damaged")
            found[name] = content
        return found

    def _where(self, number: int) -> str:
        return f"{self.root}/{self._names[int(self.index.shard[number])]}, record {number}"

    def _range(self, place: int, offset: int, size: int) -> bytes:
        path = f"{self.root}/{self._names[place]}"
        if not self.local:
            content: bytes = self._filesystem.cat_file(path, offset, offset + size)
            return content
        with self._lock:
            if place not in self._files:
                if len(self._files) >= OPEN_FILES:
                    os.close(self._files.popitem(last=False)[1])
                self._files[place] = os.open(path, os.O_RDONLY)
            self._files.move_to_end(place)
            return os.pread(self._files[place], size, offset)

    def _find_index(self, tars: dict[str, int], beside: bool) -> Index:
        """The one beside the tars; else one that was made before, else a new one, beside them where that is allowed."""
        said = f"{self._filesystem.unstrip_protocol(self.root)} {json.dumps(tars)}"
        mine = cache_folder() / "indexes" / f"{sha256(said.encode()).hexdigest()[:16]}.safetensors"
        if beside and self.local:
            index = Index.load(Path(self.root) / INDEX)
        elif beside:
            if not mine.exists():
                mine.parent.mkdir(parents=True, exist_ok=True)
                with replacing(mine) as part:
                    self._filesystem.get_file(f"{self.root}/{INDEX}", str(part))
            index = Index.load(mine)
        elif mine.exists():
            index = Index.load(mine)
        else:
            index = scan(self._filesystem, self.root, tars)
            if self.local and os.access(self.root, os.W_OK):
                index.save(Path(self.root) / INDEX)
            else:
                mine.parent.mkdir(parents=True, exist_ok=True)
                index.save(mine)
        if index.shards != tars:
            changed = sorted(name for name in {*index.shards, *tars} if index.shards.get(name) != tars.get(name))
            raise InputError(
                f"shards {self.url!r}: {changed[0]} is not as {INDEX} says ({len(changed)} differ): "
                f"prepare them again, or delete {INDEX} if you changed them"
            )
        return index


def read_beside(url: str, name: str) -> str | None:
    """The text of a small file in a folder of shards, or None."""
    try:
        filesystem, root = _open(url)
        content: bytes = filesystem.cat_file(f"{root}/{name}")
    except OSError:
        return None
    return content.decode()


def _open(url: str) -> tuple[Any, str]:
    """The file system, and the folder in it."""
    import fsspec

    try:
        filesystem, root = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"shards {url!r}: {str(error).splitlines()[0]}") from None
    return filesystem, root


def to_npy(array: np.ndarray) -> bytes:
    """An array as the content of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)
