"""Examples to the records of shards: read, encoded in batches of one size, and checked."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anystep.codecs import Codec
from anystep.codecs.tiling import encode_tiled
from anystep.conditioning import CaptionEncoder
from anystep.conditioning.text import TextEncoder, split_states
from anystep.data.example import BrokenExample, Example, Source, Traceable, digest_of, numbered_key
from anystep.data.image_encoder import ImageEncoder
from anystep.data.images import to_tensor
from anystep.data.latents import ABOUT, FEATURES, LATENT, MIRRORED, TEXT
from anystep.data.manifest import ShardStats
from anystep.data.npy import to_npy
from anystep.data.shard_files import Record, ShardLayout, write_shard
from anystep.data.sizing import ResolutionLimits, covering, cropped
from anystep.errors import InputError, is_machine_fault
from anystep.ranks import Ranks

MAX_BATCH = 32  # images that are read and encoded together
MAX_BATCH_PIXELS = MAX_BATCH * 512 * 512  # and fewer where they have more pixels than this
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
        reader: what the captions are encoded by, to count those that it cuts.
        features: images to one vector a token of the network.
        area: pixels of the largest images.
    """

    latent: Callable[[Tensor], Tensor]
    made_by: Mapping[str, Any]
    dtype: str = "float32"
    mirror: bool = False
    captions: Callable[[Sequence[str]], None] = lambda captions: None
    text: Callable[[Sequence[str]], list[Tensor]] | None = None
    reader: TextEncoder | None = None
    features: Callable[[Tensor], Tensor] | None = None
    area: int = 512 * 512

    @property
    def batch(self) -> int:
        """Images that are read and encoded together."""
        return max(1, min(MAX_BATCH, MAX_BATCH_PIXELS // self.area))


def make_encoders(
    codec: Codec,
    size: int | ResolutionLimits,
    device: torch.device,
    text: CaptionEncoder | None = None,
    features: ImageEncoder | None = None,
    patch: int = 1,
    **options: Any,
) -> Encoders:
    """What prepares images of a size for training; `text` and `features` only where they shall be kept.

    Args:
        patch: latent pixels along one side of a token of the network, whose grid `features` are for.
        options: of `Encoders`.
    """
    native = isinstance(size, ResolutionLimits)
    made_by: dict[str, Any] = {"codec": codec.fingerprint, "size": str(size) if native else size}
    token = codec.factor * patch  # pixels along its side
    if text is not None:
        made_by["text_encoder"] = text.fingerprint
    if features is not None:
        grid = "own shape" if isinstance(size, ResolutionLimits) else f"{size // token}x{size // token}"
        made_by["features"] = f"{features.fingerprint} {grid}"
        features.model.to(device)

    def featured(images: Tensor) -> Tensor:
        assert features is not None
        return features(images.to(device), images.shape[2] // token, images.shape[3] // token)

    return Encoders(
        latent=lambda images: encode_tiled(codec, images.to(device)),
        made_by=made_by,
        text=None if text is None else lambda captions: split_states(*text(captions)),
        reader=text if isinstance(text, TextEncoder) else None,
        features=None if features is None else featured,
        area=size.area if isinstance(size, ResolutionLimits) else size**2,
        **options,
    )


def cut_at(reader: TextEncoder) -> str:
    """What captions that are cut are called among the conversions of a prepared folder."""
    return f"captions cut at {reader.max_length} tokens"


def encode_shards(
    source: Source, layout: ShardLayout, encoders: Encoders, ranks: Ranks, on_progress: Callable[[int, int], None]
) -> None:
    """Make those shards of this process that are not there yet; `on_progress` is told how far all are by its pace."""
    done = 0

    def progress(more: int) -> None:
        on_progress(min(layout.examples, (done + more) * ranks.count), layout.examples)

    for shard in range(ranks.rank, layout.count, ranks.count):
        numbers = layout.numbers(shard)
        if not layout.index(shard).exists():
            encoding = ShardEncoding(source, encoders, numbers)
            index = write_shard(layout.tar(shard), encoding.records(progress))
            if not len(index.labels):  # a shard of broken examples alone
                layout.tar(shard).unlink()
            layout.save(shard, encoding.stats, encoding.stamp, index)
        done += len(numbers)
        progress(0)


@dataclass
class ShardEncoding:
    """One shard in the making.

    Attributes:
        numbers: the examples of the source that it is of.
        stats: what became of them.
        stamp: of these examples; empty where the source cannot tell.
    """

    source: Source
    encoders: Encoders
    numbers: range
    stats: ShardStats = field(default_factory=ShardStats)
    stamp: str = ""

    def records(self, on_more: Callable[[int], None]) -> Iterator[Record]:
        """The records of the shard, a batch at a time, in the order of the source; then `stats` and `stamp` are whole.

        Args:
            on_more: told after each batch how many examples are done.
        """
        numbers, size, traces = self.numbers, self.encoders.batch, list[tuple[str, str]]()
        batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        with ThreadPoolExecutor(READERS) as pool:
            waiting = [pool.submit(self._read, number) for number in batches[0]]
            for batch, following in zip(batches, [*batches[1:], range(0)], strict=True):
                read = [future.result() for future in waiting]
                waiting = [pool.submit(self._read, number) for number in following]  # while these are encoded
                traces += [trace for trace, _ in read]
                for _, broken in read:
                    if isinstance(broken, BrokenExample):
                        self.stats.broken.append(str(broken))
                        self.stats.unread += getattr(broken.__cause__, "errno", None) is not None
                found = zip(batch, (example for _, example in read), strict=True)
                if examples := [(number, example) for number, example in found if isinstance(example, Example)]:
                    yield from self._encoded(examples)
                on_more(batch[-1] + 1 - numbers.start)
        stamps, digests = zip(*traces, strict=True)
        if any(digests):
            self.stats.digest, self.stamp = digest_of(*digests), digest_of(*stamps)

    def _read(self, number: int) -> tuple[tuple[str, str], Example | BrokenExample]:
        """The stamp and the digest of an example; and the example, or why it cannot be encoded.

        Raises:
            InputError: the machine is to blame, not the example, which would be left out for ever.
        """
        source, trace, classes = self.source, ("", ""), len(self.source.class_names)
        if isinstance(source, Traceable):  # first: what changes while it is read is seen the next time
            trace = source.stamp(number), source.digest(number)
        try:
            example = source[number]
        except BrokenExample as error:
            if is_machine_fault(error.__cause__):
                raise InputError(f"{error}; no fault of the example: run the same command again") from None
            return trace, error
        if example.label is not None and not 0 <= example.label < classes:
            return trace, BrokenExample(f"{example.key}: class {example.label}, expected 0 to {classes - 1}")
        return trace, example

    @torch.no_grad()
    def _encoded(self, examples: Sequence[tuple[int, Example]]) -> Iterator[Record]:
        encoders, dtype = self.encoders, np.dtype(self.encoders.dtype)
        arrays = self._arrays([example for _, example in examples])
        captions = [caption for _, example in examples for caption in example.captions]
        encoders.captions(captions)
        unique = list(dict.fromkeys(captions))
        states = dict(zip(unique, encoders.text(unique), strict=True)) if encoders.text is not None and unique else {}
        for row, (number, example) in enumerate(examples):
            fields: dict[str, bytes] = {}
            label = -1 if example.label is None else example.label
            about: dict[str, Any] = {"key": example.key, "captions": list(example.captions), "label": label}
            try:
                for name, column in arrays.items():
                    fields[name] = to_npy(_as_dtype(column[row], dtype, name))
                if encoders.text is not None:
                    of_captions = [states[caption].float().cpu() for caption in example.captions]
                    about["lengths"] = [len(each) for each in of_captions]
                    fields[TEXT] = to_npy(_half(torch.cat(of_captions or [torch.zeros(0, 0)]).numpy()))
            except ValueError as error:
                self.stats.broken.append(f"{example.key}: {error}")
                continue
            channels, rows, columns = arrays[LATENT][row].shape
            self._count(example, channels)
            fields[ABOUT] = json.dumps(about, ensure_ascii=False).encode("utf-8", "backslashreplace")
            yield Record(numbered_key(number), fields, label, (rows, columns))

    def _arrays(self, examples: Sequence[Example]) -> dict[str, list[Any]]:
        """What the encoders make of images, by the name of the field; images of one size are encoded together."""
        encoders = self.encoders
        makers: dict[str, Callable[[Tensor], Tensor]] = {LATENT: encoders.latent}
        if encoders.mirror:
            makers[MIRRORED] = lambda images: encoders.latent(images.flip(3))
        if encoders.features is not None:
            makers[FEATURES] = encoders.features
        arrays: dict[str, list[Any]] = {name: [None] * len(examples) for name in makers}
        for size in sorted({example.image.size for example in examples}):
            rows = [row for row, example in enumerate(examples) if example.image.size == size]
            images = torch.stack([to_tensor(examples[row].image) for row in rows])
            for name, make in makers.items():
                for row, array in zip(rows, make(images).float().cpu().numpy(), strict=True):
                    arrays[name][row] = array
        return arrays

    def _count(self, example: Example, channels: int) -> None:
        stats = self.stats
        stats.channels = channels
        stats.captioned += bool(example.captions)
        reader = self.encoders.reader
        cut = [] if reader is None else [cut_at(reader)] * len(reader.cut(example.captions))
        for conversion in (*example.conversions, *cut):
            stats.conversions[conversion] = stats.conversions.get(conversion, 0) + 1
        if example.original is not None:
            lost = cropped(example.original, example.image.size)
            stats.cropped, stats.max_cropped = stats.cropped + lost, max(stats.max_cropped, lost)
            stats.counted += 1
            if (factor := covering(example.original, example.image.size)) > 1:
                stats.enlarged, stats.max_enlarged = stats.enlarged + 1, max(stats.max_enlarged, factor)


def _as_dtype(array: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """The array in the type that is stored. Raises ValueError where either holds what is not finite."""
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} is not finite: the encoder cannot encode this image")
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if not np.isfinite(stored).all():
        largest = f"{np.abs(array).max():.3g}"
        raise ValueError(f"its {name} reaches {largest}, too much for {dtype}: --dtype float32 keeps it")
    return stored


def _half(states: np.ndarray) -> np.ndarray:
    """Token states in half precision, or as they are where that cannot hold them. Raises ValueError, not finite."""
    if not np.isfinite(states).all():
        raise ValueError("the states of its caption are not finite: the text encoder cannot encode it")
    with np.errstate(over="ignore"):
        half = states.astype(np.float16)
    return half if np.isfinite(half).all() else states
