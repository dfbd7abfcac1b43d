"""A folder of shards before and after they are encoded: what is whole and unchanged in it stays, the rest is made."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from anystep.data.example import Source, Traceable, digest_of
from anystep.data.manifest import Manifest, ShardStats
from anystep.data.shard_files import ShardLayout, read_shard
from anystep.data.shard_index import INDEX, Index
from anystep.data.tar_folder import DATASET
from anystep.errors import InputError
from anystep.files import check_settings, read_json, read_text, remove_parts, write_json

STAMPS = ".stamps.json"  # by which a source is known to be unchanged without reading it; they may be deleted


class PreparedFolder:
    """What the first process does before and after all of them encode.

    Args:
        manifest: what the folder will say of itself.
        on_note: told what somebody should know, such as which shards are made again.
    """

    def __init__(self, source: Source, layout: ShardLayout, manifest: Manifest, on_note: Callable[[str], None]) -> None:
        self._source, self._layout, self._manifest, self._on_note = source, layout, manifest, on_note
        self._folder = layout.folder
        self._stamps: dict[int, str] = {}

    def begin(self) -> bool:
        """Keep what is whole and unchanged in the folder; whether that is all of it."""
        remove_parts(self._folder, below=False)
        before = self._recorded()
        if before is not None and before.complete and before.shards is None:
            self._on_note(
                f"{str(self._folder)!r} was prepared before sources were noted: it is taken as it is, whatever has "
                "changed in its source since"
            )
            self._layout.forget_all()
            return True
        for shard in self._layout.surplus():
            self._layout.tar(shard).unlink()
            self._layout.forget(shard)
        if before is not None and before.complete and self._reopen(before):
            self._layout.forget_all()
            return True
        if before is None:
            self._layout.forget_all()
        elif not before.complete:
            self._check_parts(before.made_by.get("examples") == self._layout.examples)
        self._write_manifest()
        return False

    def _recorded(self) -> Manifest | None:
        """What the folder says of itself, once it says the same as we would."""
        path = self._folder / DATASET
        if not path.exists():
            return None
        try:
            before = Manifest.parse(read_text(path), str(path))
        except InputError as error:
            self._on_note(f"{str(error).partition(': run the same')[0]}: every shard is made again")
            return None
        settings = self._manifest.made_by
        may_grow = not before.complete or before.shards is not None

        def may_differ(name: str) -> bool:
            return name not in settings or (name == "examples" and may_grow)

        remedy = "choose another --out, or delete it"
        check_settings(self._folder, "latents that differ", before.made_by, settings, may_differ, remedy)
        return before

    def _is_unchanged(self, shard: int, stats: ShardStats, stamp: str) -> bool:
        """Whether the examples of a shard are those that it was made from.

        They are read where their times differ, or where some could not be read: a file that may be read now has the
        time that it had.
        """
        source = self._source
        if not isinstance(source, Traceable) or not stats.digest:
            return True
        numbers = self._layout.numbers(shard)
        self._stamps[shard] = digest_of(*(source.stamp(each) for each in numbers))
        if stamp == self._stamps[shard] and not stats.unread:
            return True
        return stats.digest == digest_of(*(source.digest(each) for each in numbers))

    def _reopen(self, before: Manifest) -> bool:
        """Whether a finished folder is whole and unchanged; where it is not, what is goes beside its shards again."""
        count, stats, stamps = self._layout.count, before.shards or [], self._read_stamps()
        index, parts, changed, damaged = None, dict[int, Index](), list[int](), list[int]()
        try:
            index = Index.load(self._folder / INDEX)
        except InputError as error:
            self._on_note(f"{error}: it is made again from the shards")
        for shard in range(count):
            if shard >= len(stats) or not self._is_unchanged(shard, stats[shard], stamps.get(str(shard), "")):
                changed.append(shard)
            elif (part := self._whole(shard, stats[shard], index)) is None:
                damaged.append(shard)
            else:
                parts[shard] = part
        self._say_again(changed, "their examples have changed")
        self._say_again(damaged, "they are damaged or missing")
        if index is not None and len(parts) == count == len(stats):
            self._manifest.complete, self._manifest.shards = True, stats
            if self._manifest.content != before.content:
                self._write_manifest()
            self._write_stamps()
            return True
        for shard, part in parts.items():
            if index is not None and len(part.labels):
                part = index.of_shard(self._layout.tar(shard).name)
            self._layout.save(shard, stats[shard], self._stamps.get(shard, ""), part)
        return False

    def _whole(self, shard: int, stats: ShardStats, index: Index | None) -> Index | None:
        """The index of a shard that is there as it was written, or None. Of one that is in `index`, that itself."""
        path = self._layout.tar(shard)
        if not stats.channels:
            return Index.from_rows({path.name: 0}, [], [])
        if index is None:
            with suppress(InputError):
                return read_shard(path)
            return None
        size = index.shards.get(path.name)
        return index if path.is_file() and size == path.stat().st_size else None

    def _check_parts(self, as_many: bool) -> None:
        """Forget those shards of an unfinished folder that are not whole, or that have changed.

        Args:
            as_many: whether the source has as many examples as it had.
        """
        changed, unknown = [], []
        for shard in range(self._layout.count):
            if (found := self._layout.load_whole(shard)) is None:
                self._layout.forget(shard)
                continue
            traced = bool(found[0].digest) or not isinstance(self._source, Traceable)
            if not self._is_unchanged(shard, *found) or not (traced or as_many):
                changed.append(shard)
                self._layout.forget(shard)
            elif not traced:
                unknown.append(shard)
        self._say_again(changed, "their examples have changed since they were made")
        if unknown:
            self._on_note(
                f"{str(self._folder)!r}: shards {_listing(unknown)} were made before sources were noted: they are "
                "kept, whatever has changed since"
            )

    def _say_again(self, shards: Sequence[int], why: str) -> None:
        if shards:
            count = self._layout.count
            self._on_note(f"{str(self._folder)!r}: shards {_listing(shards)} of {count} are made again: {why}")

    def _write_manifest(self) -> None:
        write_json(self._folder / DATASET, self._manifest.content)

    def _read_stamps(self) -> dict[str, Any]:
        with suppress(InputError):
            return dict(read_json(self._folder / STAMPS))
        return {}

    def _write_stamps(self) -> None:
        """Write the stamps only where they differ: a second look at a folder changes nothing in it."""
        stamps = {str(shard): stamp for shard, stamp in sorted(self._stamps.items()) if stamp}
        if stamps != self._read_stamps():
            write_json(self._folder / STAMPS, stamps)

    def finish(self) -> None:
        """Write the index of all shards and the manifest; what was kept to go on with is removed."""
        layout, stats = self._layout, list[ShardStats]()
        for shard in range(layout.count):
            of_shard, self._stamps[shard] = layout.load_stats(shard)
            stats.append(of_shard)
        parts = (Index.load(layout.index(shard)) for shard in range(layout.count))
        if not (whole := [part for part in parts if len(part.labels)]):
            reasons = ShardStats.total(stats).broken
            layout.forget_all()
            (self._folder / DATASET).unlink()
            raise InputError(
                f"no example could be read; the first failure: {reasons[0] if reasons else 'the source is empty'}"
            )
        Index.concatenate(whole).save(self._folder / INDEX)
        self._write_stamps()
        self._manifest.complete, self._manifest.shards = True, stats
        self._write_manifest()
        layout.forget_all()


def _listing(numbers: Sequence[int]) -> str:
    """Ascending numbers as `0-2, 5`."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
