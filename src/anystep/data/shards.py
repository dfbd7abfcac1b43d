"""Tar files of the WebDataset layout, read by number.

An uncompressed tar is an indexable file: `index.safetensors` beside the tars says of every record in which of them it
lies, where each of its fields begins, how long it is and what its CRC-32 must be. Local folders and everything that
fsspec opens (`s3://bucket/folder`, `gs://`, `hf://`) are read alike.
"""

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from anystep.data.cache import cache_folder
from anystep.data.example import BrokenExample, PassedOver, digest_of, printable
from anystep.data.shard_index import INDEX, UNKNOWN, Index
from anystep.data.tar_files import scan
from anystep.data.tar_folder import TarFolder
from anystep.errors import NO_MORE_FILES, InputError, first_line
from anystep.files import replacing
from anystep.fingerprint import text_digest

PREPARE_AGAIN = "run the same `anystep data prepare` again"
OPEN_FILES = 128


class _File:
    """An open file for reading at places; closed when nobody reads it any more."""

    def __init__(self, path: str) -> None:
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO would wait for ever
        self.number, self._seeking = os.open(path, os.O_RDONLY | flags), Lock()

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, size: int, offset: int) -> bytes:
        """The bytes from a place on. On Windows, which cannot read at places, readers wait for each other."""
        if hasattr(os, "pread"):
            return os.pread(self.number, size, offset)
        with self._seeking:
            os.lseek(self.number, offset, os.SEEK_SET)
            return os.read(self.number, size)


class Shards:
    """The records of the tars that a URL names, by number.

    Args:
        url: as `TarFolder` takes it.

    Raises:
        InputError: what `TarFolder` refuses, or tars that are not as the index says.
    """

    def __init__(self, url: str) -> None:
        self.folder = TarFolder(url)
        self.index = _prepared_index(self.folder) if self.folder.prepared else _index_of_others(self.folder)
        self.passed_over = PassedOver(self.folder.passed_over)
        self.passed_over.update_from(self.index.passed_over)
        self.fields, self._names = self.index.fields, list(self.index.shards)
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.index.labels)

    def read(self, number: int, fields: Sequence[str] | None = None) -> dict[str, bytes]:
        """The bytes of a record's fields, those that it has. May be called from several threads.

        Raises:
            BrokenExample: they cannot be read, or are not those that were written.
        """
        index, found = self.index, {}
        for name in self.fields if fields is None else fields:
            column = self.fields.index(name)
            offset, size, checksum = (
                int(table[number, column]) for table in (index.offsets, index.sizes, index.checksums)
            )
            if size == UNKNOWN:
                continue
            try:
                content = self._range(int(index.shard[number]), offset, size)
            except Exception as error:
                if self.folder.local and (not isinstance(error, OSError) or error.errno in NO_MORE_FILES):
                    raise
                raise BrokenExample(f"{self.where(number)}: {first_line(error)}") from error
            if len(content) < size or checksum not in (UNKNOWN, zlib.crc32(content)):
                raise BrokenExample(f"{self.where(number)}: {name} is damaged")
            found[name] = content
        return found

    def where(self, number: int) -> str:
        """What a record is called in messages."""
        return f"{self.folder.root}/{self._names[int(self.index.shard[number])]}, record {number}"

    def stamp(self, number: int) -> str:
        """What changes whenever a record may have changed; it costs no reading."""
        name = self._names[int(self.index.shard[number])]
        tables = (self.index.offsets, self.index.sizes, self.index.labels)
        return digest_of(name, self.folder.times[name], self.fields, *(table[number].tolist() for table in tables))

    def _range(self, place: int, offset: int, size: int) -> bytes:
        path = f"{self.folder.root}/{self._names[place]}"
        if not self.folder.local:
            return bytes(self.folder.filesystem.cat_file(path, offset, offset + size))
        return self._opened(place, path).read(size, offset)  # outside of the lock

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


def _prepared_index(folder: TarFolder) -> Index:
    """The index that `anystep data prepare` wrote beside the tars. Raises `InputError` where it is not of these."""
    path = Path(folder.root) / INDEX
    if not folder.local and not (path := _cached_path(folder)).exists():
        _fetch(folder, path)
    if not path.exists():
        raise InputError(f"shards {folder.url!r}: no {INDEX} there: {PREPARE_AGAIN}")
    try:
        index = Index.load(path)
    except InputError as error:
        raise InputError(f"{error}: {PREPARE_AGAIN}") from None
    if index.shards != folder.tars:
        names = {*index.shards, *folder.tars}
        changed = sorted(name for name in names if index.shards.get(name) != folder.tars.get(name))
        raise InputError(
            f"shards {folder.url!r}: {changed[0]} is not as {INDEX} says ({len(changed)} differ): {PREPARE_AGAIN}"
        )
    return index


def _index_of_others(folder: TarFolder) -> Index:
    """The index beside the tars, else the one made before, else a new one, beside them where that is allowed.

    One that does not go with the tars any more, or is damaged, is not used.
    """
    cached, beside = _cached_path(folder), Path(folder.root) / INDEX
    may_lie_beside = folder.whole and folder.local
    if folder.whole and not folder.local and not cached.exists():
        _fetch(folder, cached)
    for path in (beside, cached) if may_lie_beside else (cached,):
        if not path.exists():
            continue
        try:
            index = Index.load(path)
        except InputError:
            if path == beside and path.stat().st_size > 0:
                may_lie_beside = False  # a file of somebody else, which is not overwritten
            continue
        # a changed tar is known by its time alone; records that we wrote have checksums
        known = index.times == folder.times or not (index.times or bool((index.checksums == UNKNOWN).any()))
        if index.shards == folder.tars and known:
            return index
    index = scan(folder)
    path = beside if may_lie_beside and os.access(folder.root, os.W_OK) else cached
    with suppress(OSError):  # it saves time and no more
        path.parent.mkdir(parents=True, exist_ok=True)
        index.save(path)
    return index


def _cached_path(folder: TarFolder) -> Path:
    """Where an index is kept that cannot lie beside its tars."""
    content = f"{folder.filesystem.unstrip_protocol(folder.root)} {json.dumps([folder.tars, folder.times])}"
    return cache_folder() / "indexes" / f"{text_digest(printable(content))}.safetensors"


def _fetch(folder: TarFolder, path: Path) -> None:
    """Copy the index beside remote tars, if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with suppress(FileNotFoundError), replacing(path) as part:
            folder.filesystem.get_file(f"{folder.root}/{INDEX}", str(part))
    except Exception as error:
        raise InputError(f"{folder.root}/{INDEX}: cannot be fetched: {first_line(error)}") from None
