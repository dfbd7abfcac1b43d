"""Encoded examples: what training reads, by number, from shards that `anystep.data.prepare` wrote."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anystep.data.captions import checked_captions
from anystep.data.example import BrokenExample, digest_of, merged_classes
from anystep.data.manifest import Manifest
from anystep.data.npy import from_npy
from anystep.data.shards import PREPARE_AGAIN, Shards
from anystep.data.tar_folder import DATASET, read_beside
from anystep.errors import InputError
from anystep.files import decode_text, parse_json

LATENT, MIRRORED, TEXT, FEATURES, ABOUT = "latent.npy", "mirrored.npy", "text.npy", "features.npy", "json"
REMOTE_READERS = 16
SUBSTITUTES = 100  # records tried in the place of a broken one


@dataclass(frozen=True)
class Encoded:
    """One example as training sees it.

    Attributes:
        latent: of the image.
        captions: equally good ones; empty for class-conditional data.
        label: -1 without.
        mirrored: the latent of the image turned left to right, where it was made.
        text: the token states of each caption, where they were made.
        features: of a frozen image encoder, one for each token of the network, where they were made.
    """

    latent: Float[Tensor, "channels height width"]
    captions: tuple[str, ...] = ()
    label: int = -1
    mirrored: Float[Tensor, "channels height width"] | None = None
    text: tuple[Tensor, ...] | None = None
    features: Float[Tensor, "tokens depth"] | None = None

    def turned(self, patch: int) -> "Encoded":
        """The example of the image turned left to right; itself where that has no latent.

        Its features are those of the image as it is with their columns in reverse order, so that each lies with what it
        is of. What the image encoder would say of the mirrored image itself differs a little.

        Args:
            patch: latent pixels along one side of a token.
        """
        if self.mirrored is None:
            return self
        columns, features = self.latent.shape[2] // patch, self.features
        if features is not None:
            features = features.unflatten(0, (-1, columns)).flip(1).flatten(0, 1)
        return replace(self, latent=self.mirrored, mirrored=self.latent, features=features)


class LatentShards:
    """The examples of one prepared folder.

    Args:
        url: of the folder: a path, or whatever fsspec opens.

    Attributes:
        manifest: what made them, and of what.
        stats: of all examples together.
        class_names: of the labels.
        channels: of a latent.
        labels: of each example; -1 without.
        grids: rows and columns of each latent.

    Raises:
        InputError: nothing there, not finished, or not latents.
    """

    def __init__(self, url: str) -> None:
        content = read_beside(url, DATASET)
        if content is None:
            raise InputError(f"shards {url!r} hold no latents: make some with `anystep data prepare`")
        self.manifest = Manifest.parse(content, f"{url}/{DATASET}")
        if not self.manifest.complete:
            raise InputError(f"shards {url!r} are not finished: {PREPARE_AGAIN}")
        self.shards = Shards(url)
        self.url, self.stats = url, self.manifest.total
        self.class_names, self.channels = self.manifest.class_names, self.stats.channels
        self.labels: Int[Tensor, " examples"] = self.shards.index.labels
        self.grids: Int[Tensor, "examples 2"] = self.shards.index.grids
        if missing := [name for name in (LATENT, ABOUT) if name not in self.shards.fields]:
            raise InputError(f"shards {url!r} hold no {missing[0]}: {PREPARE_AGAIN}")
        wrong = (self.labels < -1) | (self.labels >= len(self.class_names))
        if bool(wrong.any()):
            number = int(wrong.nonzero()[0])
            raise InputError(
                f"{self.shards.where(number)}: class {int(self.labels[number])}, expected 0 to "
                f"{len(self.class_names) - 1}: {PREPARE_AGAIN}"
            )

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def shapes(self) -> dict[tuple[int, int], int]:
        """How many latents have so many rows and columns, the smallest first."""
        found, counts = self.grids.unique(dim=0, return_counts=True)
        return {(rows, columns): count for (rows, columns), count in zip(found.tolist(), counts.tolist(), strict=True)}

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Refuse latents, captions or features that something else made than the run works with.

        Raises:
            InputError: names the first thing that differs.
        """
        for name, value in wanted.items():
            if (found := self.manifest.made_by.get(name)) != value:
                raise InputError(
                    f"shards {self.url!r} were made with {name.replace('_', ' ')} {found!r}, this recipe has "
                    f"{value!r}: prepare them again, or change the recipe"
                )

    def __getitem__(self, number: int) -> Encoded:
        """Raises BrokenExample."""
        found = self.shards.read(number)
        try:
            about = parse_json(decode_text(found[ABOUT], ABOUT), ABOUT)
            captions = checked_captions(about.get("captions")) if about.get("captions") != [] else ()
            arrays = {n: _tensor(found[n], n).float() for n in (LATENT, MIRRORED, FEATURES) if n in found}
            label, shape = about.get("label"), arrays[LATENT].shape
            if label != int(self.labels[number]):
                raise ValueError(f"class {label!r}, but {int(self.labels[number])} by the index")
            if shape[:1] != (self.channels,) or list(shape[1:]) != self.grids[number].tolist():
                raise ValueError(f"a latent of {list(shape)}, but {self.channels} channels and another grid are noted")
            if MIRRORED in arrays and arrays[MIRRORED].shape != shape:
                raise ValueError(f"latents of {list(shape)} and, mirrored, {list(arrays[MIRRORED].shape)}")
            if FEATURES in arrays and arrays[FEATURES].ndim != 2:
                raise ValueError(f"features of shape {list(arrays[FEATURES].shape)}")
            text = _states(found[TEXT], about.get("lengths"), len(captions)) if TEXT in found else None
        except (KeyError, ValueError) as error:
            what = f"no {error.args[0]}" if isinstance(error, KeyError) else error
            raise BrokenExample(f"{self.shards.where(number)}: {what}") from None
        return Encoded(arrays[LATENT], captions, label, arrays.get(MIRRORED), text, arrays.get(FEATURES))


def holds_latents(url: str) -> bool:
    """Whether a folder of shards was prepared, and is not one of images."""
    return read_beside(url, DATASET) is not None


def label_and_grid(fields: Mapping[str, bytes]) -> tuple[int, tuple[int, int]]:
    """The label and the grid of a record, from its content. Raises ValueError where that is damaged."""
    label, shape = parse_json(fields[ABOUT], ABOUT).get("label"), from_npy(fields[LATENT]).shape
    if not isinstance(label, int) or len(shape) != 3:
        raise ValueError(f"class {label!r} and a latent of {shape}")
    return label, (shape[1], shape[2])


def _tensor(content: bytes, name: str) -> Tensor:
    """The array of a field, in single or half precision. Raises ValueError where that is damaged or not finite."""
    array = from_npy(content)
    tensor = torch.from_numpy(array if array.dtype == np.float16 else array.astype(np.float32, copy=False))
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is not finite")
    return tensor


def _states(content: bytes, lengths: Any, captions: int) -> tuple[Tensor, ...]:
    """The token states of each caption. Raises ValueError where they do not go with the captions."""
    states = _tensor(content, TEXT)
    if not isinstance(lengths, list) or not all(isinstance(length, int) and length >= 0 for length in lengths):
        raise ValueError("no lengths of its captions")
    if states.ndim != 2 or sum(lengths) != len(states) or len(lengths) != captions:
        raise ValueError(f"states of shape {list(states.shape)} for {captions} captions of {lengths} tokens")
    return states.split(lengths)


class LatentSet:
    """Several prepared folders end to end.

    Args:
        sets: of one shape, unless `native`. Classes of one name are one class.
        broken_limit: the share of examples that may turn out unreadable.
        native: whether examples may differ in shape.

    Attributes:
        sizes: examples of each.
        channels: of a latent.
        shape: of the largest latent.
        class_names: of the labels.
        labels, grids: those of each set, with the numbers that `class_names` has.
        captioned: how many examples have a caption.
        left_out: why examples were left out when the sets were made.
        broken: why each example that was met could not be read.

    Raises:
        InputError: sets that do not go together.
    """

    def __init__(self, sets: Sequence[LatentShards], broken_limit: float = 0.01, native: bool = False) -> None:
        depths = {each.channels for each in sets}
        if len(depths) > 1:
            raise InputError(f"sources with latents of {sorted(depths)} channels cannot be mixed")
        shapes = {shape for each in sets for shape in each.shapes}
        if len(shapes) > 1 and not native:
            raise InputError(
                f"latents of {len(shapes)} shapes, {min(shapes)} to {max(shapes)}: set data.native, or prepare squares"
            )
        self.sets, self.broken_limit = list(sets), broken_limit
        self.channels = depths.pop()
        self.shape = (self.channels, *max(shapes, key=lambda shape: shape[0] * shape[1]))
        self.sizes = [len(each) for each in sets]
        self.class_names, numbers = merged_classes([each.class_names for each in sets])
        self._numbers = [torch.tensor([*each, -1]) for each in numbers]  # label -1, no class, reads the last
        self._ends = list(accumulate(self.sizes))
        self.labels = [numbers[each.labels] for numbers, each in zip(self._numbers, sets, strict=True)]
        self.grids = [each.grids for each in sets]
        self.captioned = sum(each.stats.captioned for each in sets)
        self.left_out = [reason for each in sets for reason in each.stats.broken]
        self.broken: dict[int, str] = {}
        self._readers = None if all(each.shards.folder.local for each in sets) else ThreadPoolExecutor(REMOTE_READERS)

    def __len__(self) -> int:
        return self._ends[-1]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells these examples from others: names of the classes, how many they are, and a digest of them all."""
        indexes = [each.shards.index for each in self.sets]
        content = [table.numpy().tobytes() for index in indexes for table in (index.checksums, index.labels)]
        return {"class_names": list(self.class_names), "examples": len(self), "digest": digest_of(*content)}

    def read(self, numbers: Sequence[int]) -> list[Encoded]:
        """These examples. One that cannot be read is noted in `broken`, and one of its neighbours stands in for it.

        Raises:
            InputError: none of many neighbours can be read either.
        """
        return list((map if self._readers is None else self._readers.map)(self._one, numbers))

    def _one(self, number: int) -> Encoded:
        place = bisect_right(self._ends, number)
        size, grids = self.sizes[place], self.sets[place].grids
        first, tried = self._ends[place] - size, 0
        for step in range(size):
            index = first + (number - first + step) % size
            # one of another shape cannot take its place in a batch
            if tried == SUBSTITUTES or not torch.equal(grids[index - first], grids[number - first]):
                continue
            tried += 1
            if index not in self.broken:
                try:
                    found = self.sets[place][index - first]
                    return replace(found, label=int(self._numbers[place][found.label]))
                except BrokenExample as error:
                    self.broken[index] = str(error)
        last = next(reversed(self.broken.values()))
        raise InputError(f"{tried} examples of a shape in a row cannot be read, the last: {last}")

    def check_broken(self) -> None:
        """Raises InputError when more are broken than a run may bear."""
        if len(self.broken) > max(10, self.broken_limit * len(self)):
            raise InputError(
                f"{len(self.broken)} of {len(self)} examples cannot be read, more than data.broken_limit "
                f"{self.broken_limit:g}; the last: {next(reversed(self.broken.values()))}"
            )
