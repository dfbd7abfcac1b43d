"""How a source is cut into shards, and what lies beside a shard while a folder is being prepared."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anystep.data.manifest import ShardStats
from anystep.data.shard_index import Index
from anystep.errors import InputError
from anystep.files import read_json, write_json


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
        """Note that a shard is whole.

        Args:
            stamp: of its examples, by which they are known to be unchanged without reading them.
        """
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
        for suffix in ("safetensors", "json"):
            for left in self.folder.glob(f".*.part.{suffix}"):
                left.unlink()

    def surplus(self) -> Iterator[int]:
        """The shards in the folder that are beyond the end of the source."""
        for path in self.folder.glob("[0-9]*.tar"):
            if path.stem.isdecimal() and int(path.stem) >= self.count:
                yield int(path.stem)
