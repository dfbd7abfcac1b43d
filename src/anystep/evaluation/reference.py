"""The real images that generated ones are measured against, and the controls made of others."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from PIL import Image, ImageFilter

from anystep.data.example import BrokenExample, Example, Source
from anystep.data.images import from_pixels, to_pixels
from anystep.data.sizing import Fixed
from anystep.data.sources import open_source
from anystep.errors import InputError
from anystep.evaluation.collect import Cost, collect
from anystep.evaluation.extractors.registry import FeatureExtractor
from anystep.evaluation.metrics.base import ImageFeatures, Images, Metric
from anystep.evaluation.metrics.registry import check_measurable
from anystep.evaluation.settings import Evaluation, MeasurementSettings
from anystep.seeds import generator_of

FINGERPRINTED = 100  # images whose pixels tell one set of real images from another
BLUR = 1.0  # standard deviation in pixels, of the degraded control
NOISE = 25.0  # standard deviation in levels, of the other
REAL = "real images against real images"
Change: TypeAlias = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Reference:
    """Two disjoint draws of a source: `real` is compared with, `held_out` is the control and gives the captions.

    Of a source that is halved, always in the same way, the `validation` half has nothing in common with the `test`
    half. Draws from that one are those of the whole, where it is large enough for them.
    """

    source: Source
    size: Fixed
    real: list[int]
    held_out: list[int]

    @classmethod
    def draw(
        cls,
        source: Source,
        size: Fixed,
        samples: int,
        seed: int,
        part: Literal["whole", "test", "validation"] = "whole",
    ) -> "Reference":
        """At most `samples` readable examples each; another `seed` takes others of the same half."""
        order = random.Random(0).sample(range(len(source)), len(source))
        halves = {"test": order[: len(order) // 2], "validation": order[len(order) // 2 :][::-1]}
        for each in halves.values() if seed else ():
            random.Random(seed).shuffle(each)
        order = [*halves["test"], *halves["validation"][::-1]] if part == "whole" else halves[part]
        half = min(samples, len(order) // 2)
        if not half:
            raise InputError(f"{len(order)} examples to compare with: need at least 2")
        return cls(source, size, order[:half], order[half : 2 * half])

    def prompts(self, count: int, seed: int) -> list[str | int]:
        """A caption (or class) for each of `count` images: that of each held-out image, in turn."""
        rng = random.Random(seed + 1)
        prompts: list[str | int] = []
        for number in range(count):
            example = self._readable(self.held_out[number % len(self.held_out)])
            prompts.append(rng.choice(example.captions) if example.captions else int(example.label or 0))
        return prompts

    def images(self, indices: Sequence[int], change: Change | None = None) -> Images:
        """The images of these examples, each changed where there is a change."""
        images = [self._readable(index).image for index in indices]
        return torch.stack([to_pixels(change(image) if change else image) for image in images])

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


def open_reference(
    settings: MeasurementSettings, size: tuple[int, int], metrics: Sequence[Metric], extractor: FeatureExtractor
) -> Reference:
    """The real images that settings name. Raises `InputError`: too few of them for the metrics."""
    options = {"vocabulary": "everyday", "split": "train"} if settings.data == "builtin" else {}
    part: Literal["whole", "validation"] = "validation" if settings.validation else "whole"
    shape: Fixed = size[0] if size[0] == size[1] else size
    source = open_source(settings.data, shape, **options)
    reference = Reference.draw(source, shape, settings.samples, settings.data_seed, part)
    try:
        check_measurable(metrics, extractor, len(reference.real))
    except InputError as error:
        share = "a quarter for each side of validation" if settings.validation else "half for each side"
        raise InputError(f"data {settings.data!r} has {len(source)} images, {share}: {error}") from None
    return reference


def real_features(evaluation: Evaluation, reference: Reference) -> ImageFeatures:
    """The real images, without captions, which are of those that images are generated for."""
    return _features(evaluation, reference, "real", reference.real)


def control_features(evaluation: Evaluation, reference: Reference) -> dict[str, ImageFeatures]:
    """The controls by name: other real images, and these degraded in two ways."""
    count = len(reference.held_out) if evaluation.scorers else 0
    captions = list(map(str, reference.prompts(count, evaluation.seed)))

    def blurred(first: int) -> Change:
        return lambda image: image.filter(ImageFilter.GaussianBlur(BLUR))

    def noisy(first: int) -> Change:
        rng = generator_of(evaluation.seed + first)  # no chunk depends on another

        def change(image: Image.Image) -> Image.Image:
            levels = to_pixels(image).float()
            noise = NOISE * torch.randn(levels.shape, generator=rng)
            return from_pixels((levels + noise).clamp(0, 255).round().to(torch.uint8))

        return change

    def control(name: str, change_from: Callable[[int], Change | None] = lambda first: None) -> ImageFeatures:
        return _features(evaluation, reference, name, reference.held_out, captions, change_from)

    return {
        REAL: control("again"),
        f"blurred by {BLUR:g} pixels": control("blurred", blurred),
        f"with noise of {NOISE:g} levels": control("noisy", noisy),
    }


def _features(
    evaluation: Evaluation,
    reference: Reference,
    name: str,
    indices: list[int],
    captions: Sequence[str] = (),
    change_from: Callable[[int], Change | None] = lambda first: None,
) -> ImageFeatures:
    """Images of a source; `change_from` gives what changes those of a chunk, by the number of its first.

    `name` is part of the name of the folder that keeps them.
    """
    key = [name, reference.fingerprint(indices), evaluation.seed, list(captions)]
    folder = evaluation.chunk_folder(*key, scored=bool(captions))

    def make(chunk: range) -> tuple[Images, Cost]:
        return reference.images([indices[number] for number in chunk], change_from(chunk.start)), Cost()

    return collect(evaluation, name, folder, len(indices), make, captions)[0]
