"""A source encoded once, into shards that training reads.

Shard `k` holds the examples `k * size` to `(k + 1) * size` of the source and depends on nothing else, so that processes
share the work, and one that was killed goes on with the first shard that is missing.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anystep.data.example import BrokenExample, Example, Source
from anystep.data.images import to_tensor
from anystep.data.latents import ABOUT, DATASET, FEATURES, LATENT, MIRRORED, TEXT, LatentShards
from anystep.data.shards import INDEX, Index, Record, to_npy, write_shard
from anystep.data.sizing import cropped
from anystep.errors import InputError
from anystep.files import write_text
from anystep.ranks import Ranks

BATCH = 32  # images that are read and encoded together, at most
PIXELS = BATCH * 512 * 512  # and fewer where they have more pixels than this
SHARD = 1000
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


def prepare(
    source: Source,
    folder: Path,
    encoders: Encoders,
    ranks: Ranks | None = None,
    shard_size: int = SHARD,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentShards:
    """Encode every example into `folder`, or what is missing there. Unreadable ones are left out and named.

    Args:
        ranks: the processes that share the work; all call this.
        on_progress: told how many of the examples are done.

    Raises:
        InputError: no example can be read, or the folder was begun with other encoders, examples or shards.
    """
    ranks = ranks or Ranks.alone()
    made_by = {
        **encoders.made_by,
        "dtype": encoders.dtype,
        "mirror": encoders.mirror,
        "examples": len(source),
        "shard_size": shard_size,
    }
    about = {"made_by": made_by, "class_names": list(source.class_names), "complete": False}
    said: dict[str, Any] = about
    if ranks.first:
        said = _agree(folder, about)
    said = ranks.tell(said)[0]
    if "problem" in said:
        raise InputError(said["problem"])
    if not said["complete"]:
        _encode(source, folder, encoders, ranks, shard_size, on_progress)
        ranks.wait()
        problem = ""
        if ranks.first:
            try:
                _finish(folder, about, -(-len(source) // shard_size))
            except InputError as error:
                problem = str(error)
        if problem := ranks.tell(problem)[0]:
            raise InputError(problem)
    return LatentShards(str(folder))


def _agree(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What the folder says of itself, once it says the same as we would; else the problem."""
    path = folder / DATASET
    if path.exists():
        before: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for name, value in about["made_by"].items():
            if before["made_by"].get(name) != value:
                return {
                    "problem": f"{folder} was made with {name.replace('_', ' ')} {before['made_by'].get(name)!r}, not "
                    f"{value!r}: choose another folder, or delete it"
                }
        for left in folder.glob(".*.part"):  # of a writer that was killed
            left.unlink()
        return before
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(about, indent=1) + "\n")
    except OSError as error:
        return {"problem": f"cannot write to folder {str(folder)!r}: {error.strerror}"}
    return about


def _part(folder: Path, number: int) -> Path:
    return folder / f".{number:06d}.part.safetensors"


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
            note = Note()
            records = _records(source, numbers, encoders, note, partial(heard, done))
            index = write_shard(folder / f"{number:06d}.tar", records)
            write_text(_part(folder, number).with_suffix(".json"), json.dumps(asdict(note)))
            index.save(_part(folder, number))  # last: it says that the shard is whole
        done += len(numbers)
        heard(done, 0)


def _records(
    source: Source,
    numbers: range,
    encoders: Encoders,
    note: "Note",
    on_more: Callable[[int], None],
) -> Iterator[Record]:
    """The records of one shard, a batch at a time, in the order of the source; `note` says what they were."""

    def read(number: int) -> Example | str:
        try:
            return source[number]
        except BrokenExample as error:
            return str(error)

    with ThreadPoolExecutor(READERS) as pool:
        parts = [numbers[start : start + encoders.batch] for start in range(0, len(numbers), encoders.batch)]
        waiting = [pool.submit(read, number) for number in parts[0]] if parts else []
        for place, part in enumerate(parts):
            found = [future.result() for future in waiting]
            if place + 1 < len(parts):  # read while these are encoded
                waiting = [pool.submit(read, number) for number in parts[place + 1]]
            note.broken += [reason for reason in found if isinstance(reason, str)]
            examples = [
                (number, example) for number, example in zip(part, found, strict=True) if isinstance(example, Example)
            ]
            if examples:
                yield from _encoded(examples, encoders, note)
            on_more(part[-1] + 1 - numbers.start)


@dataclass
class Note:
    """What one shard became.

    Attributes:
        broken: why examples were left out.
        captioned: how many have a caption.
        channels: of the latents.
        notes: how many examples needed what.
        cropped: the share of each image that was cropped away, summed; and the most.
        counted: of how many images that is.
    """

    broken: list[str] = field(default_factory=list)
    captioned: int = 0
    channels: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    cropped: float = 0.0
    most_cropped: float = 0.0
    counted: int = 0

    def add(self, example: Example) -> None:
        self.captioned += bool(example.captions)
        for what in example.notes:
            self.notes[what] = self.notes.get(what, 0) + 1
        if example.original is not None:
            lost = cropped(example.original, example.image.size)
            self.cropped, self.most_cropped, self.counted = (
                self.cropped + lost, max(self.most_cropped, lost), self.counted + 1
            )  # fmt: skip

    def __add__(self, other: "Note") -> "Note":
        counts = Counter(self.notes)
        counts.update(other.notes)
        return Note(
            self.broken + other.broken,
            self.captioned + other.captioned,
            max(self.channels, other.channels),
            dict(counts),
            self.cropped + other.cropped,
            max(self.most_cropped, other.most_cropped),
            self.counted + other.counted,
        )


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
            for row, array in zip(rows, make(images).float().cpu().numpy().astype(kind), strict=True):
                arrays[name][row] = array
    spoken = [caption for _, example in examples for caption in example.captions]
    encoders.captions(spoken)
    unique = list(dict.fromkeys(spoken))
    states = dict(zip(unique, encoders.text(unique), strict=True)) if encoders.text is not None and unique else {}
    for row, (number, example) in enumerate(examples):
        note.add(example)
        channels, high, wide = arrays[LATENT][row].shape
        note.channels = channels
        label = -1 if example.label is None else example.label
        about: dict[str, Any] = {"key": example.key, "captions": list(example.captions), "label": label}
        fields = {name: to_npy(column[row]) for name, column in arrays.items()}
        if encoders.text is not None:
            mine = [states[caption].half().cpu() for caption in example.captions]
            about["lengths"] = [len(each) for each in mine]
            fields[TEXT] = to_npy(torch.cat(mine or [torch.zeros(0, 0).half()]).numpy())
        fields[ABOUT] = json.dumps(about, ensure_ascii=False).encode()
        yield Record(f"{number:09d}", fields, label, (high, wide))


def _finish(folder: Path, about: dict[str, Any], shards: int) -> None:
    """The index of all shards, and what the folder holds; what was kept to go on with is removed."""
    parts = [Index.load(_part(folder, number)) for number in range(shards)]
    texts = [_part(folder, number).with_suffix(".json").read_text("utf-8") for number in range(shards)]
    note = sum((Note(**json.loads(text)) for text in texts), start=Note())
    whole = [part for part in parts if len(part.labels)]
    if not whole:
        raise InputError(
            f"no example could be read; the first failure: {note.broken[0] if note.broken else 'the source is empty'}"
        )
    for part in parts:
        if not len(part.labels):  # a shard of broken examples alone
            (folder / next(iter(part.shards))).unlink(missing_ok=True)
    Index.joined(whole).save(folder / INDEX)
    write_text(folder / DATASET, json.dumps({**about, "complete": True, **asdict(note)}, indent=1) + "\n")
    for number in range(shards):
        _part(folder, number).unlink(missing_ok=True)
        _part(folder, number).with_suffix(".json").unlink(missing_ok=True)
