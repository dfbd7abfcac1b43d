"""Shards that are ours: how a source is cut into them, their tars, and what lies beside one in an unfinished folder."""

import io
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anystep.data.example import PassedOver
from anystep.data.latents import label_and_grid
from anystep.data.manifest import ShardStats
from anystep.data.shard_index import UNKNOWN, Index, IndexRow
from anystep.data.tar_files import Entry, read_entries
from anystep.errors import InputError
from anystep.files import check_regular, read_json, replacing, write_json


@dataclass(frozen=True)
class ShardLayout:
    """Shard `k` holds the examples `k * shard_size` to `(k + 1) * shard_size` of the source.

    A folder that is not finished holds, beside each shard that is whole, its index and its stats.
    """

    folder: Path
    examples: int
    shard_size: int

    @property
    def count(self) -> int:
        return -(-self.examples // self.shard_size)

    def numbers(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.shard_size, min(self.examples, (shard + 1) * self.shard_size))

    def tar(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.tar"

    def index(self, shard: int) -> Path:
        return self.folder / f".{shard:06d}.part.safetensors"

    def stats(self, shard: int) -> Path:
        return self.index(shard).with_suffix(".json")

    def save(self, shard: int, stats: ShardStats, stamp: str, index: Index) -> None:
        """Note that a shard is whole; by `stamp` its examples are known to be unchanged without reading them."""
        write_json(self.stats(shard), {**stats.content, "stamp": stamp})
        index.save(self.index(shard))  # last: it says that the shard is whole

    def load_stats(self, shard: int) -> tuple[ShardStats, str]:
        """The stats and the stamp of a shard. Raises `InputError` where they are missing or damaged."""
        path = self.stats(shard)
        content = read_json(path)
        return ShardStats.parse(content, str(path)), str(content.get("stamp", ""))

    def load_whole(self, shard: int) -> tuple[ShardStats, str] | None:
        """The stats and the stamp of a shard; None where it is not whole."""
        try:
            stats, stamp = self.load_stats(shard)
            expected = Index.load(self.index(shard)).shards
            sizes = {name: (self.folder / name).stat().st_size for name in expected} if stats.channels else expected
        except (InputError, FileNotFoundError):
            return None
        return (stats, stamp) if sizes == expected else None

    def forget(self, shard: int) -> None:
        """Note that a shard is to be made again; its tar is replaced then."""
        self.index(shard).unlink(missing_ok=True)
        self.stats(shard).unlink(missing_ok=True)

    def forget_all(self) -> None:
        for left in self.folder.glob(".*.part.*"):
            if left.suffix in (".safetensors", ".json"):
                left.unlink()

    def surplus(self) -> list[int]:
        """The shards in the folder that are beyond the end of the source."""
        found = [int(path.stem) for path in self.folder.glob("[0-9]*.tar") if path.stem.isdecimal()]
        return [shard for shard in found if shard >= self.count]


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


def read_shard(path: Path) -> Index:
    """The index of a tar of encoded examples, from its content. Raises `InputError` where that is damaged."""
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
                rows.append(IndexRow(places, *label_and_grid(found)))
    except (tarfile.TarError, LookupError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return Index.from_rows({path.name: size}, fields, rows)
