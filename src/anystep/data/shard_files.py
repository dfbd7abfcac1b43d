"""Shards that are ours: tars of records, whose bytes depend on the records alone."""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anystep.data.example import PassedOver
from anystep.data.shard_index import UNKNOWN, Index, IndexRow
from anystep.data.tar_files import Entry, read_entries
from anystep.errors import InputError
from anystep.files import check_regular, replacing


@dataclass(frozen=True)
class Record:
    """One entry of a shard: the bytes of each of its fields, by extension."""

    key: str
    fields: Mapping[str, bytes]
    label: int = UNKNOWN
    grid: tuple[int, int] = (0, 0)


def write_shard(path: Path, records: Iterable[Record]) -> Index:
    """Write a tar whose bytes depend on the records alone: no time, no owner."""
    rows: list[IndexRow] = []
    fields: list[str] = []
    with replacing(path, durable=True) as part:
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for record in records:
                fields = fields or list(record.fields)
                places = [_add(tar, f"{record.key}.{name}", record.fields[name]) for name in fields]
                rows.append(IndexRow(places, record.label, record.grid))
        size = part.stat().st_size
    return Index.from_rows({path.name: size}, fields, rows)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int, int]:
    """Append a file; where its content begins, its size and its CRC-32."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
    padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - padded, len(content), zlib.crc32(content)


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
    rows: list[IndexRow] = []
    try:
        with path.open("rb") as file:
            for entry in read_entries(file, size, PassedOver()):
                key, _, extension = entry.name.name.partition(".")
                records.setdefault(key, {})[extension] = entry
            fields = list(next(iter(records.values()), {}))
            for record in records.values():
                found = {}
                for name, entry in record.items():
                    file.seek(entry.offset)
                    found[name] = file.read(entry.size)
                places = [(record[name].offset, record[name].size, zlib.crc32(found[name])) for name in fields]
                rows.append(IndexRow(places, *describe(found)))
    except (tarfile.TarError, LookupError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return Index.from_rows({path.name: size}, fields, rows)
