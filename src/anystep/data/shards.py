"""Tar files of the WebDataset layout, read by number.

An uncompressed tar is an indexable file: `index.safetensors` beside the tars says of every record in which of them it
lies, where each of its fields begins, how long it is and what its CRC-32 must be. Local folders and everything that
fsspec opens (`s3://bucket/folder`, `gs://`, `hf://`) are read alike.
"""

import io
import json
import math
import os
import re
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from anystep.data.cache import cache_folder
from anystep.data.example import MOST_CLASSES, BrokenExample, PassedOver, digest_of
from anystep.data.images import image_suffixes
from anystep.errors import InputError
from anystep.files import NO_MORE_FILES, check_regular, decode_text, read_text, replacing

INDEX = "index.safetensors"
DATASET = "dataset.json"  # beside prepared shards: what they hold and what made them
SIZES = "sizes.png"  # a picture of that
CLASSES = "classes.txt"  # beside tars of images: the names of classes, one a line
UNKNOWN = -1  # a checksum or label nobody has noted; the size of a field that a record lacks
WRONG = -2  # a label that is the number of no class
BESIDE = {".txt", ".json", ".cls"}  # what tells of an image
LONGEST_CLASS = 64  # bytes of a file with the number of a class
MOST_PADDING = 2**20  # bytes after the end of an archive
MOST_TARS = 1_000_000
TOLD_BY = ("ETag", "etag", "checksum", "mtime", "LastModified", "last_modified", "created")  # of remote files
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
        times: when each of the tars was written, where somebody else wrote them: by that a change is seen.
        passed_over: what lies in those and is no record.
    """

    shards: dict[str, int]
    fields: list[str]
    shard: Tensor
    offsets: Tensor
    sizes: Tensor
    checksums: Tensor
    labels: Tensor
    grids: Tensor
    _: KW_ONLY
    times: dict[str, str] = field(default_factory=dict)
    passed_over: PassedOver = field(default_factory=PassedOver)

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name).contiguous() for name in TABLES}
        # one entry: several are written in an order that changes from process to process
        holds = [self.shards, self.fields] + ([self.times, self.passed_over] if self.times else [])
        with replacing(path, durable=True) as part:
            # not save_file, whose errors are none of the system's: a full disk must be known as such
            part.write_bytes(save(tensors, metadata={"holds": json.dumps(holds)}))

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Mapped into memory, not read: the processes of a machine share the pages.

        Raises:
            InputError: damaged.
        """
        check_regular(path)
        try:
            with safe_open(path, "pt") as file:
                holds = json.loads((file.metadata() or {})["holds"])
            tensors = load_file(path)
            shards, fields, times, passed = [*holds, {}, {}][:4]
            index = cls(
                dict(shards), list(fields), *(tensors[name] for name in TABLES),
                times=dict(times), passed_over=PassedOver(passed),
            )  # fmt: skip
            index.check()
        except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged: {str(error) or type(error).__name__}") from None
        return index

    def check(self) -> None:
        """Raise ValueError where the tables do not go together, or tell of places outside of the tars."""
        rows, columns = len(self.shard), len(self.fields)
        shapes = {"shard": (rows,), "labels": (rows,), "grids": (rows, 2)}
        for name in TABLES:
            table = getattr(self, name)
            if tuple(table.shape) != shapes.get(name, (rows, columns)) or table.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"its table {name} is {table.dtype} of {list(table.shape)}")
        if not all(isinstance(size, int) for size in self.shards.values()):
            raise ValueError("its sizes of tars are no numbers")
        if rows == 0:
            return
        if int(self.shard.min()) < 0 or int(self.shard.max()) >= len(self.shards):
            raise ValueError("it names tars that it does not list")
        ends = torch.tensor(list(self.shards.values()))[self.shard.long()][:, None]
        outside = (self.offsets < 0) | (self.offsets > ends) | (self.sizes < UNKNOWN) | (self.sizes > ends)
        if bool((outside | (self.offsets + self.sizes > ends)).any()):
            raise ValueError("it tells of places outside of the tars")

    def of(self, name: str) -> "Index":
        """The part of one of the shards."""
        rows = self.shard == list(self.shards).index(name)
        tables = [getattr(self, table)[rows] for table in TABLES[1:]]
        return Index({name: self.shards[name]}, self.fields, torch.zeros(int(rows.sum()), dtype=torch.int32), *tables)

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
    with replacing(path, durable=True) as part:
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


def read_shard(path: Path, describe: Callable[[Mapping[str, bytes]], tuple[int, tuple[int, int]]]) -> Index:
    """The index of a tar that `write_shard` wrote, from its content.

    Args:
        describe: the fields of a record to its label and grid; raises ValueError where they are damaged.

    Raises:
        InputError: damaged.
    """
    check_regular(path)
    size = path.stat().st_size
    records: dict[str, dict[str, Entry]] = {}
    try:
        with path.open("rb") as file:
            for entry in read_entries(file, size, PassedOver()):
                key, _, extension = entry.name.name.partition(".")
                records.setdefault(key, {})[extension] = entry
            fields = list(next(iter(records.values()), {}))
            rows, checksums, described = [], [], []
            for record in records.values():
                found = {}
                for name, entry in record.items():
                    file.seek(entry.offset)
                    found[name] = file.read(entry.size)
                rows.append([record[name] for name in fields])
                checksums.append([zlib.crc32(found[name]) for name in fields])
                described.append(describe(found))
    except (tarfile.TarError, LookupError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return _index(
        {path.name: size},
        fields,
        [0] * len(rows),
        [[entry.offset for entry in row] for row in rows],
        [[entry.size for entry in row] for row in rows],
        checksums,
        [label for label, _ in described],
        [grid for _, grid in described],
    )


def empty_index(name: str) -> Index:
    """Of a shard without records."""
    return _index({name: 0}, [], [], [], [], [], [], [])


def _index(
    shards: dict[str, int],
    fields: list[str],
    shard: list[int],
    offsets: list[list[int]],
    sizes: list[list[int]],
    checksums: list[list[int]],
    labels: list[int],
    grids: list[tuple[int, int]],
    times: dict[str, str] | None = None,
    passed: PassedOver | None = None,
) -> Index:
    shape = (len(labels), len(fields))
    begin, length, check = (torch.tensor(rows, dtype=torch.int64).view(shape) for rows in (offsets, sizes, checksums))
    places = torch.tensor(shard, dtype=torch.int32)
    sides = torch.tensor(grids, dtype=torch.int32).view(-1, 2)
    numbers = torch.tensor(labels, dtype=torch.int64)
    passed = PassedOver() if passed is None else passed
    return Index(
        shards, fields, places, begin, length, check, numbers, sides, times=times or {}, passed_over=passed
    )  # fmt: skip


class Entry(NamedTuple):
    """A file in a tar: its name, where its content begins, its size, and the first bytes of it where it is a class."""

    name: PurePosixPath
    offset: int
    size: int
    content: bytes


def _next(tar: tarfile.TarFile, at: int, size: int) -> tarfile.TarInfo | None:
    """The header after the one at byte `at`; an error names that."""
    try:
        return tar.next()
    except tarfile.TarError as error:
        where = f" after the file at byte {at:,} of {size:,}" if at >= 0 else ""
        raise tarfile.ReadError(f"{error}{where}") from None


def read_entries(file: Any, size: int, passed: PassedOver) -> list[Entry]:
    """The files in an uncompressed tar, from its headers; what is no plain file is counted in `passed`.

    Raises:
        tarfile.TarError: damaged, or cut: the end of the archive, two blocks of zeros, is not where the headers lead
            to, or is not the end of the file. Says at which byte.
    """
    entries = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        at = -1
        while (entry := _next(tar, at, size)) is not None:
            if entry.offset <= at or entry.size < 0:
                raise tarfile.ReadError(f"a header that leads back, at byte {entry.offset:,}")
            at = entry.offset
            if entry.offset_data + entry.size > size:
                raise tarfile.ReadError(f"it ends in the middle of {entry.name}, at byte {size:,}")
            if entry.isdir():
                continue
            name = PurePosixPath(entry.name)
            if not entry.isreg() or entry.issparse():
                passed.add("links, devices and sparse files in tars", entry.name)
            elif name.name.startswith("."):
                passed.add("hidden files and folders", entry.name)
            else:
                short = name.suffix.lower() == ".cls" and entry.size <= LONGEST_CLASS
                opened = tar.extractfile(entry) if short else None
                entries.append(Entry(name, entry.offset_data, entry.size, b"" if opened is None else opened.read()))
        end = tar.offset
    file.seek(end)
    rest = file.read(MOST_PADDING + 1)
    if len(rest) < tarfile.BLOCKSIZE or any(rest[: 2 * tarfile.BLOCKSIZE]):
        what = "damaged" if any(rest[: tarfile.BLOCKSIZE]) else "cut off"
        raise tarfile.ReadError(f"{what} at byte {end:,} of {size:,}: no end of the archive there")
    if any(rest) or len(rest) > MOST_PADDING:
        raise tarfile.ReadError(f"its archive ends at byte {end:,}, but {size - end:,} more follow")
    return entries


def group(entries: Iterable[Entry], passed: PassedOver) -> list[dict[str, Entry]]:
    """The records that some files of a tar are: by field, files of one name.

    The first dot ends a name, as WebDataset has it. But where several dots would make fields nobody knows
    ("photo.1.png"), and what is before the last dot is a record of its own, the last dot does.
    """
    names: dict[str, list[Entry]] = {}
    for entry in entries:
        names.setdefault(f"{entry.name.parent}/{entry.name.name.partition('.')[0]}", []).append(entry)
    records = []
    for members in names.values():
        plain = [entry for entry in members if entry.name.name.count(".") <= 1]
        dotted: dict[str, list[Entry]] = {}
        for entry in members:
            if entry.name.name.count(".") > 1:
                dotted.setdefault(entry.name.stem, []).append(entry)
        told = any(entry.name.suffix.lower() in BESIDE for entry in plain)
        found: dict[str, list[tuple[str, Entry]]] = {"": [(_extension(entry, 1), entry) for entry in plain]}
        for stem, those in dotted.items():
            suffixes = {entry.name.suffix.lower() for entry in those}
            pictured = bool(suffixes & image_suffixes())
            own = pictured and (not told or bool(suffixes & BESIDE))
            mine = [(_extension(entry, entry.name.name.count(".") if own else 1), entry) for entry in those]
            found.setdefault(stem if own else "", []).extend(mine)
            if pictured and not own:
                passed.add("images in tars that belong to another: the first dot ends a name", str(those[0].name))
        for fields in found.values():
            record: dict[str, Entry] = {}
            for extension, entry in fields:
                if extension in record:  # another record of the same name
                    records.append(record)
                    record = {}
                record[extension] = entry
            if record:
                records.append(record)
    return sorted(records, key=lambda record: next(iter(record.values())).offset)


def _extension(entry: Entry, dot: int) -> str:
    """What follows that dot of a file's name, in lower case."""
    return entry.name.name.split(".", dot)[-1].lower() if "." in entry.name.name else ""


def _label(record: Mapping[str, Entry]) -> int:
    """The class that a record gives; `UNKNOWN` without, `WRONG` where it is none."""
    if "cls" not in record:
        return UNKNOWN
    digits = record["cls"].content.strip()
    if not digits.isdigit():  # `int` would take 1_0 for 10
        return WRONG
    label = int(digits)
    return label if label < MOST_CLASSES else WRONG


def scan(filesystem: Any, root: str, names: Mapping[str, int], times: Mapping[str, str]) -> Index:
    """The index of tars that somebody else made, from their headers.

    Raises:
        InputError: not a tar, a damaged one, or one that ends in the middle.
    """
    found: list[tuple[int, dict[str, Entry]]] = []
    passed = PassedOver()
    for place, name in enumerate(names):
        try:
            with filesystem.open(f"{root}/{name}", "rb") as file:
                entries = read_entries(file, names[name], passed)
        except (tarfile.TarError, ValueError, RecursionError) as error:
            what = "too many headers in a row" if isinstance(error, RecursionError) else error
            raise InputError(f"{root}/{name}: not a whole, uncompressed tar: {what}") from None
        except Exception as error:  # every file system has errors of its own
            if isinstance(error, OSError) and error.errno in NO_MORE_FILES:
                raise
            raise InputError(f"{root}/{name}: cannot be read: {_reason(error)}") from None
        found += [(place, record) for record in group(entries, passed)]
    columns = sorted({extension for _, fields in found for extension in fields})
    lie = [
        [(fields[name].offset, fields[name].size) if name in fields else (0, UNKNOWN) for name in columns]
        for _, fields in found
    ]
    return _index(
        dict(names),
        columns,
        [place for place, _ in found],
        [[offset for offset, _ in row] for row in lie],
        [[size for _, size in row] for row in lie],
        [[UNKNOWN] * len(columns) for _ in found],
        [_label(fields) for _, fields in found],
        [(0, 0)] * len(found),
        dict(times),
        passed,
    )


def _reason(error: Exception) -> str:
    """The first line of what a file system says; each has errors of its own."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


class _File:
    """An open file for reading at places; closed when nobody reads it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO would wait for ever

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class Shards:
    """The records of a folder of tars, by number.

    Args:
        url: of the folder, of one tar, or of several whose names differ in numbers, `part-{000..010}.tar`: a path, or
            whatever fsspec opens.

    Raises:
        InputError: no such folder, no tar in it, tars that are not as the index says, or a file system that needs a
            package.
    """

    def __init__(self, url: str) -> None:
        folder, wanted = named_tars(url)
        self._filesystem, self.root = _open(folder)
        self.url = url
        self.local = isinstance(self._filesystem, LocalFileSystem)
        self.passed_over = PassedOver()
        found = self._list()
        if wanted is not None:
            if missing := [name for name in wanted if name not in found]:
                raise InputError(f"shards {url!r}: no {missing[0]} there ({len(missing)} of {len(wanted)} are missing)")
            found = {name: found[name] for name in wanted}
        tars = {name: size for name, (size, _) in found.items() if name.endswith(".tar")}
        if not tars:
            held = f"; {self.passed_over.lines[0]}" if self.passed_over else ""
            raise InputError(f"shards {url!r}: no .tar file in it{held}")
        self._times = {name: found[name][1] for name in tars}
        self.index = self._find_index(tars, wanted is None, DATASET in found and wanted is None)
        for kind, (count, first) in self.index.passed_over.items():
            self.passed_over.add(kind, first, count)
        self._column = {name: place for place, name in enumerate(self.index.fields)}
        self._names = list(self.index.shards)
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = Lock()

    def _list(self) -> dict[str, tuple[int, str]]:
        """The tars of the folder and what belongs to them, by name, with their sizes and when they were written."""
        found: dict[str, tuple[int, str]] = {}
        if self.local:
            try:
                entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
            except OSError as error:
                raise InputError(f"shards {self.url!r}: {error.strerror}") from None
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    stat = entry.stat()
                except OSError:
                    self.passed_over.add("links to nothing", entry.name)
                    continue
                if entry.is_file():
                    found[entry.name] = (stat.st_size, str(stat.st_mtime_ns))
                else:
                    self.passed_over.add("folders, FIFOs and devices beside tars", entry.name)
        else:
            try:
                listed = sorted(self._filesystem.ls(self.root, detail=True), key=lambda entry: str(entry["name"]))
            except Exception as error:  # every file system has errors of its own
                raise InputError(f"shards {self.url!r}: {_reason(error)}") from None
            for entry in listed:
                name = PurePosixPath(entry["name"]).name
                if entry.get("type", "file") == "file":
                    told = next((entry[key] for key in TOLD_BY if entry.get(key)), "")
                    found[name] = (int(entry["size"] or 0), str(told))
        for name in found:
            if not name.endswith(".tar") and name not in (INDEX, DATASET, CLASSES, SIZES):
                packed = ".tar." in name or name.endswith(".tgz")
                self.passed_over.add(
                    "compressed tars, which must be unpacked" if packed else "files that are no .tar", name
                )
        return found

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
            except Exception as error:
                if self.local and (not isinstance(error, OSError) or error.errno in NO_MORE_FILES):
                    raise
                raise BrokenExample(f"{self.where(number)}: {_reason(error)}") from None
            if len(content) < size or checksum not in (UNKNOWN, zlib.crc32(content)):
                raise BrokenExample(f"{self.where(number)}: {name} is damaged")
            found[name] = content
        return found

    def where(self, number: int) -> str:
        """What a record is called in messages."""
        return f"{self.root}/{self._names[int(self.index.shard[number])]}, record {number}"

    def stamp(self, number: int) -> str:
        """What changes whenever a record may have changed; it costs no reading."""
        name = self._names[int(self.index.shard[number])]
        tables = (self.index.offsets, self.index.sizes, self.index.labels)
        return digest_of(name, self._times[name], self.fields, *(table[number].tolist() for table in tables))

    def _range(self, place: int, offset: int, size: int) -> bytes:
        path = f"{self.root}/{self._names[place]}"
        if not self.local:
            content: bytes = self._filesystem.cat_file(path, offset, offset + size)
            return content
        file = self._opened(place, path)
        return os.pread(file.number, size, offset)  # outside of the lock: readers need not wait for each other

    def _opened(self, place: int, path: str) -> _File:
        with self._lock:
            if place not in self._files:
                while len(self._files) >= OPEN_FILES:
                    self._files.popitem(last=False)
                try:
                    self._files[place] = _File(path)
                except OSError as error:
                    if error.errno not in NO_MORE_FILES or not self._files:
                        raise
                    self._files.clear()
                    self._files[place] = _File(path)
            self._files.move_to_end(place)
            return self._files[place]

    def _find_index(self, tars: dict[str, int], beside: bool, prepared: bool) -> Index:
        """The one beside the tars; else one that was made before, else a new one, beside them where that is allowed.

        Of tars that somebody else wrote, one that does not go with them any more, or is damaged, is not used.

        Args:
            beside: whether an index beside the tars would be of these and no others.
            prepared: whether `anystep data prepare` wrote the tars, and the index with them.
        """
        said = f"{self._filesystem.unstrip_protocol(self.root)} {json.dumps([tars, self._times])}"
        name = sha256(said.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        mine = cache_folder() / "indexes" / f"{name}.safetensors"
        theirs = Path(self.root) / INDEX
        if beside and not self.local and not mine.exists():
            self._fetch(mine)
        foreign = False
        for path in ([theirs] if beside and self.local else []) + [mine] * (not prepared or not self.local):
            if not path.exists():
                continue
            try:
                index = Index.load(path)
            except InputError as error:
                foreign = foreign or (path == theirs and path.stat().st_size > 0)
                if prepared:
                    raise InputError(f"{error}: run the same `anystep data prepare` again") from None
                continue
            # a changed tar of others is known by its time alone; records that we wrote have checksums
            known = index.times == self._times or not (index.times or bool((index.checksums == UNKNOWN).any()))
            if index.shards == tars and (known or prepared):
                return index
            if prepared:
                changed = sorted(name for name in {*index.shards, *tars} if index.shards.get(name) != tars.get(name))
                raise InputError(
                    f"shards {self.url!r}: {changed[0]} is not as {INDEX} says ({len(changed)} differ): run the same "
                    "`anystep data prepare` again"
                )
        if prepared:
            raise InputError(f"shards {self.url!r}: no {INDEX} there: run the same `anystep data prepare` again")
        index = scan(self._filesystem, self.root, tars, self._times)
        path = theirs if beside and self.local and not foreign and os.access(self.root, os.W_OK) else mine
        with suppress(OSError):  # it saves time and no more
            path.parent.mkdir(parents=True, exist_ok=True)
            index.save(path)
        return index

    def _fetch(self, path: Path) -> None:
        """The index beside remote tars, if there is one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with suppress(FileNotFoundError), replacing(path) as part:
                self._filesystem.get_file(f"{self.root}/{INDEX}", str(part))
        except Exception as error:
            raise InputError(f"{self.root}/{INDEX}: cannot be fetched: {_reason(error)}") from None


def named_tars(url: str) -> tuple[str, list[str] | None]:
    """A folder, and the names of the tars in it that are meant; None for all.

    Raises:
        InputError: a pattern that names no tars.
    """
    folder, slash, last = url.rpartition("/")
    if "{" in folder:
        raise InputError(f"shards {url!r}: braces may stand in the names of tars alone, not in that of their folder")
    if not ("{" in last or last.endswith(".tar")) or Path(url).is_dir():
        return url, None
    return f"{folder}//" if folder.endswith(":/") else folder or slash or ".", _expanded(last, url)


def _expanded(pattern: str, url: str) -> list[str]:
    """`part-{00..02}.tar` and `{train,test}.tar`, as a shell writes them out."""
    found = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise InputError(f"shards {url!r}: {pattern!r} is no pattern; expected one such as part-{{000..010}}.tar")
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        parts = listed.split(",")
    else:
        if not 0 <= int(last) - int(first) < MOST_TARS:
            raise InputError(f"shards {url!r}: {{{first}..{last}}} counts no tars, or more than {MOST_TARS:,}")
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    ends = _expanded(pattern[found.end() :], url)
    if len(parts) * len(ends) > MOST_TARS:
        raise InputError(f"shards {url!r}: more than {MOST_TARS:,} tars")
    return [f"{pattern[: found.start()]}{part}{end}" for part in parts for end in ends]


def read_beside(url: str, name: str) -> str | None:
    """The text of a small file in a folder of shards, or None where there is none.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    filesystem, root = _open(named_tars(url)[0])
    where = f"{root}/{name}"
    if isinstance(filesystem, LocalFileSystem):
        return read_text(Path(where)) if os.path.lexists(where) else None
    try:
        content: bytes = filesystem.cat_file(where)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except Exception as error:  # every file system has errors of its own
        raise InputError(f"{where}: {_reason(error)}") from None
    return decode_text(content, where)


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


@lru_cache(maxsize=1024)  # numpy parses it as Python code, which takes longer than all else; records share few
def _npy_header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What the part of a `.npy` file before its numbers says: shape, whether columns come first, kind."""
    buffer = io.BytesIO(content)
    version = np.lib.format.read_magic(buffer)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(buffer)


def from_npy(content: bytes) -> np.ndarray:
    """The array in the content of a `.npy` file of numbers, of which no more is made than the content holds.

    Raises:
        ValueError: damaged, or not of numbers.
    """
    first = 10 if content[6:7] == b"\1" else 12  # byte of the header, whose length is in those before it
    start = first + int.from_bytes(content[8:first], "little")
    try:
        shape, fortran, kind = _npy_header(content[:start])
    except Exception as error:  # its reader meets damage with exceptions of every type
        raise ValueError(f"a damaged array: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    if kind.kind not in "fiub" or any(side < 0 for side in shape):
        raise ValueError(f"an array of {kind} and shape {shape}, expected numbers")
    if math.prod(shape) * kind.itemsize != len(content) - start:
        raise ValueError(f"a damaged array: {len(content) - start} bytes, expected {shape} of {kind}")
    array = np.frombuffer(content, kind, offset=start).reshape(shape, order="F" if fortran else "C")
    return array.copy()  # which may be written to
