"""The real images that generated ones are measured against."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image

from anystep.codecs import to_uint8
from anystep.data.example import BrokenExample, Example, Source
from anystep.data.images import to_tensor
from anystep.data.sizing import Fixed
from anystep.errors import InputError
from anystep.evaluation.collect import Images

FINGERPRINTED = 100  # images whose pixels tell one set of real images from another


@dataclass(frozen=True)
class Reference:
    """Two disjoint draws of a source: `real` is compared with, `again` is the control and gives the captions.

    Of a source that is halved the `validation` half has nothing in common with the `test` half. Draws from that one are
    those of the whole, where it is large enough for them.
    """

    source: Source
    size: Fixed
    real: list[int]
    again: list[int]

    @classmethod
    def draw(
        cls,
        source: Source,
        size: Fixed,
        samples: int,
        seed: int,
        part: Literal["whole", "test", "validation"] = "whole",
    ) -> "Reference":
        """At most `samples` readable examples each."""
        order = random.Random(seed).sample(range(len(source)), len(source))
        if part != "whole":
            middle = len(order) // 2
            order = order[:middle] if part == "test" else order[middle:][::-1]
        half = min(samples, len(order) // 2)
        if not half:
            raise InputError(f"{len(order)} examples to compare with: need at least 2")
        return cls(source, size, order[:half], order[half : 2 * half])

    def prompts(self, count: int, seed: int) -> list[str | int]:
        """A caption (or class) for each of `count` images: that of each of `again`, in turn."""
        rng = random.Random(seed + 1)
        asked: list[str | int] = []
        for number in range(count):
            example = self._readable(self.again[number % len(self.again)])
            asked.append(rng.choice(example.captions) if example.captions else int(example.label or 0))
        return asked

    def images(self, indices: Sequence[int], change: Callable[[Image.Image], Image.Image] | None = None) -> Images:
        pictures = [self._readable(index).image for index in indices]
        return to_uint8(torch.stack([to_tensor(change(picture) if change else picture) for picture in pictures]))

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of the names of these examples, and of the pixels of some of them."""
        digest = hashlib.sha256(f"{self.size} {len(self.source)}".encode())
        for place, index in enumerate(indices):
            if place % max(1, len(indices) // FINGERPRINTED) == 0:
                example = self._readable(index)
                digest.update(example.key.encode() + example.image.tobytes())
        digest.update(str(list(indices)).encode())
        return digest.hexdigest()[:16]

    def _readable(self, index: int) -> Example:
        """The example, or the next that can be read."""
        for place in range(index, index + len(self.source)):
            try:
                return self.source[place % len(self.source)]
            except BrokenExample:
                continue
        raise InputError("no example to compare with could be read")
