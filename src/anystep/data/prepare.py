"""A source encoded once, into shards that training reads.

Shard `k` holds the examples `k * size` to `(k + 1) * size` of the source and depends on nothing else, so that processes
share the work, and one that was killed goes on with the first shard that is missing. Each shard notes what it was made
from, so that those whose examples have changed since are made again, and no others.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anystep.data.example import BrokenExample, Example, Source, Traceable, digest_of, passed_over
from anystep.data.images import to_tensor
from anystep.data.latents import ABOUT, FEATURES, LATENT, MIRRORED, TEXT, About, LatentShards, Note, describe
from anystep.data.npy import to_npy
from anystep.data.shard_files import Record, read_shard, write_shard
from anystep.data.shard_index import INDEX, Index
from anystep.data.sizing import cropped
from anystep.data.tar_folder import DATASET
from anystep.errors import InputError, one_line
from anystep.files import check_settings, read_json, read_text, write_json
from anystep.ranks import Ranks

BATCH = 32  # images that are read and encoded together, at most
PIXELS = BATCH * 512 * 512  # and fewer where they have more pixels than this
SHARD = 1000
KIND = "prepared data set"
STAMPS = ".stamps.json"  # by which a source is known to be unchanged without reading it; they may be deleted
READERS = 4  # threads that decode images while the codec works


@dataclass(frozen=True)
class Encoders:
    """What makes the fields of a record.

    Attributes:
        latent: images (batch, 3, height, width) in [-1, 1], of one size, to latents.
        made_by: fingerprints of all of them, and of what else the numbers depend on.
        dtype: latents are kept in.
        mirror: whether to keep the latents of the mirrored images too.
        captions: called with the captions of a batch, to cache what they become elsewhere.
        text: captions to the token states of each, to be kept in the shards.
        features: images to one vector a token of the network.
        area: pixels of the largest images.
    """

    latent: Callable[[Tensor], Tensor]
    made_by: Mapping[str, Any]
    dtype: str = "float32"
    mirror: bool = False
    captions: Callable[[Sequence[str]], None] = lambda captions: None
    text: Callable[[Sequence[str]], list[Tensor]] | None = None
    features: Callable[[Tensor], Tensor] | None = None
    area: int = 512 * 512

    @property
    def batch(self) -> int:
        """Images that are read and encoded together."""
        return max(1, min(BATCH, PIXELS // self.area))


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def prepare(
    source: Source,
    folder: Path,
    encoders: Encoders,
    ranks: Ranks | None = None,
    shard_size: int = SHARD,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = _say,
) -> LatentShards:
    """Encode every example into `folder`, or what is missing there. Unreadable ones are left out and named.

    Shards whose examples have changed since they were made are made again.

    Args:
        ranks: the processes that share the work; all call this.
        on_progress: told how many of the examples are done.
        on_note: told what somebody should know, such as which shards are made again; in the first process.

    Raises:
        InputError: no example can be read, the folder was begun with other encoders or shards, or is in use.
    """
    ranks = ranks or Ranks.single()
    made_by = {
        **encoders.made_by,
        "dtype": encoders.dtype,
        "mirror": encoders.mirror,
        "examples": len(source),
        "shard_size": shard_size,
    }
    about = About(made_by, list(source.class_names), passed_over=passed_over(source))
    work = _Work(source, folder, about, shard_size, on_note)
    with ranks.claimed(folder, KIND, legacy=(DATASET,)):
        if not ranks.all_gather_object(ranks.on_main(work.begin))[0]:
            with ranks.together():
                _encode(source, folder, encoders, ranks, shard_size, on_progress)
            ranks.on_main(work.finish)
        return LatentShards(str(folder))


def _part(folder: Path, number: int) -> Path:
    return folder / f".{number:06d}.part.safetensors"


def _note(folder: Path, number: int) -> Path:
    return _part(folder, number).with_suffix(".json")


def _tar(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.tar"


def _trace(source: Source, number: int) -> tuple[str, str]:
    """The stamp and the digest of an example; empty where the source cannot tell."""
    return (source.stamp(number), source.digest(number)) if isinstance(source, Traceable) else ("", "")


def _listing(numbers: Sequence[int]) -> str:
    """`0-2, 5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


class _Work:
    """What the first process does before and after all of them encode.

    A folder that is being made holds, beside each shard that is whole, its index and its note.

    Args:
        about: what the folder will be.
    """

    def __init__(
        self, source: Source, folder: Path, about: About, shard_size: int, on_note: Callable[[str], None]
    ) -> None:
        self._source, self._folder, self._about, self._on_note = source, folder, about, on_note
        self._size = shard_size
        self._shards = -(-len(source) // shard_size)
        self._stamps: dict[int, str] = {}

    def begin(self) -> bool:
        """Keep what is whole and unchanged in the folder; whether that is all of it."""
        for left in self._folder.glob(".*.part"):  # of a writer that was killed
            left.unlink()
        before = self._before()
        if before is None:
            self._remove_surplus()
            self._remove_parts()
            self._write(self._about)
            return False
        if before.complete and before.notes is None:
            self._on_note(
                f"{str(self._folder)!r} was prepared before sources were noted: it is taken as it is, whatever has "
                "changed in its source since"
            )
            self._remove_parts()
            return True
        self._remove_surplus()
        if before.complete and self._unpack(before):
            self._remove_parts()
            return True
        if not before.complete:
            self._check_parts(before.made_by.get("examples") == len(self._source))
        self._write(self._about)
        return False

    def _before(self) -> About | None:
        """What the folder says of itself, once it says the same as we would."""
        path = self._folder / DATASET
        if not path.exists():
            return None
        try:
            before = About.parse(read_text(path), str(path))
        except InputError as error:
            self._on_note(f"{str(error).partition(': run the same')[0]}: every shard is made again")
            return None
        ours = self._about.made_by
        known = not before.complete or before.notes is not None

        def may_differ(name: str) -> bool:
            return name not in ours or (name == "examples" and known)

        remedy = "choose another --out, or delete it"
        check_settings(self._folder, "latents that differ", before.made_by, ours, may_differ, remedy)
        return before

    def _numbers(self, number: int) -> range:
        return range(number * self._size, min(len(self._source), (number + 1) * self._size))

    def _unchanged(self, number: int, note: Note, stamp: str) -> bool:
        """Whether the examples of a shard are those that it was made from; images are read where their times differ."""
        if not isinstance(self._source, Traceable) or not note.digest:
            return True
        numbers = self._numbers(number)
        self._stamps[number] = digest_of(*(self._source.stamp(each) for each in numbers))
        return stamp == self._stamps[number] or note.digest == digest_of(
            *(self._source.digest(each) for each in numbers)
        )

    def _unpack(self, before: About) -> bool:
        """Whether a finished folder is whole and unchanged; where it is not, what is goes beside its shards again."""
        notes, stamps = before.notes or [], self._read_stamps()
        try:
            index = Index.load(self._folder / INDEX)
        except InputError as error:
            self._on_note(f"{error}: it is made again from the shards")
            index = None
        parts: dict[int, Index] = {}
        changed, damaged = [], []
        for number in range(self._shards):
            if number >= len(notes) or not self._unchanged(number, notes[number], stamps.get(str(number), "")):
                changed.append(number)
            elif (part := self._whole(number, notes[number], index)) is None:
                damaged.append(number)
            else:
                parts[number] = part
        for what, numbers in (("their examples have changed", changed), ("they are damaged or missing", damaged)):
            if numbers:
                self._on_note(
                    f"{str(self._folder)!r}: shards {_listing(numbers)} of {self._shards} are made again: {what}"
                )
        if index is not None and len(parts) == self._shards == len(notes):
            self._about.complete, self._about.notes = True, notes
            if self._about.content != before.content:
                self._write(self._about)
            self._write_stamps()
            return True
        for number, part in parts.items():
            whole = index.of_shard(_tar(self._folder, number).name) if index is not None and len(part.labels) else part
            self._keep(number, notes[number], whole)
        return False

    def _whole(self, number: int, note: Note, index: Index | None) -> Index | None:
        """The index of a shard that is there as it was written, or None. Of one that is in `index`, that itself."""
        path = _tar(self._folder, number)
        if not note.channels:
            return Index.from_rows({path.name: 0}, [], [])
        if index is None:
            try:
                return read_shard(path, describe)
            except InputError:
                return None
        size = index.shards.get(path.name)
        return index if path.is_file() and size == path.stat().st_size else None

    def _check_parts(self, as_many: bool) -> None:
        """Of shards that are whole in an unfinished folder, forget those that have changed.

        Args:
            as_many: whether the source has as many examples as it had.
        """
        changed, unknown = [], []
        for number in range(self._shards):
            if (found := self._read_part(number)) is None:
                self._remove([number])
                continue
            note, stamp = found
            noted = bool(note.digest) or not isinstance(self._source, Traceable)
            if not self._unchanged(number, note, stamp) or not (noted or as_many):
                changed.append(number)
                self._remove([number])
            elif not noted:
                unknown.append(number)
        if changed:
            self._on_note(
                f"{str(self._folder)!r}: shards {_listing(changed)} of {self._shards} are made again: their examples "
                "have changed since they were made"
            )
        if unknown:
            self._on_note(
                f"{str(self._folder)!r}: shards {_listing(unknown)} were made before sources were noted: they are "
                "kept, whatever has changed since"
            )

    def _read_part(self, number: int) -> tuple[Note, str] | None:
        """The note and the stamp of a shard of an unfinished folder; None where that is not whole."""
        path = _note(self._folder, number)
        try:
            said = read_json(path)
            note, part = Note.parse(said, str(path)), Index.load(_part(self._folder, number))
            sizes = (
                {name: (self._folder / name).stat().st_size for name in part.shards} if note.channels else part.shards
            )
        except (InputError, FileNotFoundError):
            return None
        return (note, str(said.get("stamp", ""))) if sizes == part.shards else None

    def _keep(self, number: int, note: Note, index: Index) -> None:
        write_json(_note(self._folder, number), {**vars(note), "stamp": self._stamps.get(number, "")})
        index.save(_part(self._folder, number))

    def _remove(self, numbers: Sequence[int]) -> None:
        """Parts of shards; the shards themselves are replaced when they are made."""
        for number in numbers:
            _part(self._folder, number).unlink(missing_ok=True)
            _note(self._folder, number).unlink(missing_ok=True)

    def _remove_surplus(self) -> None:
        """What is there of more shards than the source has now."""
        for path in self._folder.glob("[0-9]*.tar"):
            if path.stem.isdecimal() and int(path.stem) >= self._shards:
                path.unlink()
                self._remove([int(path.stem)])

    def _remove_parts(self) -> None:
        for suffix in ("safetensors", "json"):
            for left in self._folder.glob(f".*.part.{suffix}"):
                left.unlink()

    def _write(self, about: About) -> None:
        write_json(self._folder / DATASET, about.content)

    def _read_stamps(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read_json(self._folder / STAMPS)
        except InputError:
            return {}
        return found

    def _write_stamps(self) -> None:
        """Only where they differ: a second look at a folder changes nothing in it."""
        stamps = {str(number): stamp for number, stamp in sorted(self._stamps.items()) if stamp}
        if stamps != self._read_stamps():
            write_json(self._folder / STAMPS, stamps)

    def finish(self) -> None:
        """The index of all shards, and what the folder holds; what was kept to go on with is removed."""
        folder, notes = self._folder, []
        for number in range(self._shards):
            said = read_json(_note(folder, number))
            notes.append(Note.parse(said, str(_note(folder, number))))
            self._stamps[number] = str(said.get("stamp", ""))
        parts = [Index.load(_part(folder, number)) for number in range(self._shards)]
        whole = [part for part in parts if len(part.labels)]
        if not whole:
            reasons = Note.sum(notes).broken
            self._remove_parts()
            (folder / DATASET).unlink()
            raise InputError(
                f"no example could be read; the first failure: {reasons[0] if reasons else 'the source is empty'}"
            )
        Index.concatenate(whole).save(folder / INDEX)
        self._write_stamps()
        self._about.complete, self._about.notes = True, notes
        self._write(self._about)
        self._remove_parts()


def _encode(
    source: Source,
    folder: Path,
    encoders: Encoders,
    ranks: Ranks,
    shard_size: int,
    on_progress: Callable[[int, int], None],
) -> None:
    mine = range(ranks.rank, -(-len(source) // shard_size), ranks.count)
    done = 0

    def heard(before: int, more: int) -> None:
        on_progress(min(len(source), (before + more) * ranks.count), len(source))

    for number in mine:
        numbers = range(number * shard_size, min(len(source), (number + 1) * shard_size))
        if not _part(folder, number).exists():
            note, traces = Note(), list[tuple[str, str]]()
            records = _records(source, numbers, encoders, note, traces, partial(heard, done))
            index = write_shard(_tar(folder, number), records)
            if not len(index.labels):  # a shard of broken examples alone
                _tar(folder, number).unlink()
            stamps, digests = zip(*traces, strict=True)
            note.digest = digest_of(*digests) if any(digests) else ""
            write_json(_note(folder, number), {**vars(note), "stamp": digest_of(*stamps) if note.digest else ""})
            index.save(_part(folder, number))  # last: it says that the shard is whole
        done += len(numbers)
        heard(done, 0)


def _records(
    source: Source,
    numbers: range,
    encoders: Encoders,
    note: Note,
    traces: list[tuple[str, str]],
    on_more: Callable[[int], None],
) -> Iterator[Record]:
    """The records of one shard, a batch at a time, in the order of the source.

    `note` says what they were, `traces` what the source said of each before it was read.
    """

    def read(number: int) -> tuple[tuple[str, str], Example | str]:
        trace = _trace(source, number)  # first: what changes while it is read is seen the next time
        try:
            return trace, source[number]
        except BrokenExample as error:
            return trace, str(error)

    with ThreadPoolExecutor(READERS) as pool:
        parts = [numbers[start : start + encoders.batch] for start in range(0, len(numbers), encoders.batch)]
        waiting = [pool.submit(read, number) for number in parts[0]] if parts else []
        for place, part in enumerate(parts):
            found = [future.result() for future in waiting]
            if place + 1 < len(parts):  # read while these are encoded
                waiting = [pool.submit(read, number) for number in parts[place + 1]]
            traces += [trace for trace, _ in found]
            examples = []
            for number, (_, example) in zip(part, found, strict=True):
                if isinstance(example, str):
                    note.broken.append(example)
                elif reason := _fault(example, source):
                    note.broken.append(reason)
                else:
                    examples.append((number, example))
            if examples:
                yield from _encoded(examples, encoders, note)
            on_more(part[-1] + 1 - numbers.start)


def _fault(example: Example, source: Source) -> str:
    """What forbids to use an example that was read; nothing where all is well."""
    if example.label is not None and not 0 <= example.label < len(source.class_names):
        return f"{example.key}: class {example.label}, expected 0 to {len(source.class_names) - 1}"
    return ""


def _add(note: Note, example: Example) -> None:
    note.captioned += bool(example.captions)
    for what in example.conversions:
        note.notes[what] = note.notes.get(what, 0) + 1
    if example.original is not None:
        lost = cropped(example.original, example.image.size)
        note.cropped, note.most_cropped = note.cropped + lost, max(note.most_cropped, lost)
        note.counted += 1


@torch.no_grad()
def _encoded(examples: Sequence[tuple[int, Example]], encoders: Encoders, note: Note) -> Iterator[Record]:
    makers: dict[str, Callable[[Tensor], Tensor]] = {LATENT: encoders.latent}
    if encoders.mirror:
        makers[MIRRORED] = lambda images: encoders.latent(images.flip(3))
    if encoders.features is not None:
        makers[FEATURES] = encoders.features
    kind = np.dtype(encoders.dtype)
    arrays: dict[str, list[Any]] = {name: [None] * len(examples) for name in makers}
    for size in sorted({example.image.size for _, example in examples}):
        rows = [row for row, (_, example) in enumerate(examples) if example.image.size == size]
        images = torch.stack([to_tensor(examples[row][1].image) for row in rows])
        for name, make in makers.items():
            for row, array in zip(rows, make(images).float().cpu().numpy(), strict=True):
                arrays[name][row] = array
    spoken = [caption for _, example in examples for caption in example.captions]
    encoders.captions(spoken)
    unique = list(dict.fromkeys(spoken))
    states = dict(zip(unique, encoders.text(unique), strict=True)) if encoders.text is not None and unique else {}
    for row, (number, example) in enumerate(examples):
        fields: dict[str, bytes] = {}
        label = -1 if example.label is None else example.label
        about: dict[str, Any] = {"key": example.key, "captions": list(example.captions), "label": label}
        try:
            for name, column in arrays.items():
                fields[name] = to_npy(_kept(column[row], kind, name))
            if encoders.text is not None:
                mine = [states[caption].float().cpu() for caption in example.captions]
                about["lengths"] = [len(each) for each in mine]
                fields[TEXT] = to_npy(_half(torch.cat(mine or [torch.zeros(0, 0)]).numpy()))
        except ValueError as error:
            note.broken.append(f"{example.key}: {error}")
            continue
        _add(note, example)
        channels, high, wide = arrays[LATENT][row].shape
        note.channels = channels
        fields[ABOUT] = json.dumps(about, ensure_ascii=False).encode("utf-8", "backslashreplace")
        yield Record(f"{number:09d}", fields, label, (high, wide))


def _kept(array: np.ndarray, kind: np.dtype[Any], name: str) -> np.ndarray:
    """In the type that is kept. Raises ValueError where that, or the array itself, holds what is not finite."""
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} is not finite: the encoder cannot encode this image")
    with np.errstate(over="ignore"):
        kept = array.astype(kind)
    if not np.isfinite(kept).all():
        raise ValueError(f"its {name} reaches {np.abs(array).max():.3g}, too much for {kind}: --dtype float32 keeps it")
    return kept


def _half(states: np.ndarray) -> np.ndarray:
    """Token states in half precision, or as they are where that cannot hold them. Raises ValueError, not finite."""
    if not np.isfinite(states).all():
        raise ValueError("the states of its caption are not finite: the text encoder cannot encode it")
    with np.errstate(over="ignore"):
        half = states.astype(np.float16)
    return half if np.isfinite(half).all() else states
