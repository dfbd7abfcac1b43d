"""The real images that generated ones are measured against, and the controls made of others."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from PIL import Image, ImageFilter

from anystep.bounds import shown
from anystep.conditioning import LabelEncoder
from anystep.data.example import BrokenExample, Source, Traceable, digest_of
from anystep.data.images import from_pixels, to_pixels
from anystep.data.sizing import Fixed
from anystep.data.sources import open_source
from anystep.errors import InputError, is_machine_fault
from anystep.evaluation.collect import Cost, collect
from anystep.evaluation.extractors.registry import FeatureExtractor
from anystep.evaluation.metrics.base import ImageFeatures, Images, Metric
from anystep.evaluation.metrics.registry import check_measurable
from anystep.evaluation.settings import Evaluation, MeasurementSettings
from anystep.seeds import generator_of

BLUR = 1.0  # standard deviation in pixels, of the degraded control
NOISE = 25.0  # standard deviation in levels, of the other
REAL = "real images against real images"
Change: TypeAlias = Callable[[Image.Image], Image.Image]


class Drawn(NamedTuple):
    """What is kept of an example when its image has been looked at; the digest tells it from a changed one."""

    key: str
    captions: tuple[str, ...]
    label: int | None
    digest: str


@dataclass(frozen=True)
class Reference:
    """Two disjoint draws of a source: `real` is compared with, `held_out` is the control and gives the captions.

    Of a source that is halved, always in the same way, the `validation` half has nothing in common with the `test`
    half. Draws from that one are those of the whole, where it is large enough for them.

    Attributes:
        about: the examples of both draws.
        unreadable: why examples were passed over, which others of the same half stand in for.
    """

    source: Source
    size: Fixed
    real: list[int]
    held_out: list[int]
    about: Mapping[int, Drawn]
    unreadable: Sequence[str]

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
        about: dict[int, Drawn] = {}
        unreadable: list[str] = []
        for index in order:
            if len(about) == 2 * min(samples, len(order) // 2):
                break
            try:
                about[index] = _look_at(source, index)
            except BrokenExample as error:
                if is_machine_fault(error.__cause__):
                    raise InputError(f"{error}; no fault of the example: run the same command again") from None
                unreadable.append(str(error))
        drawn, half = list(about), len(about) // 2
        if not half:
            broken = f", {len(unreadable)} of which cannot be read: {unreadable[0]}" if unreadable else ""
            raise InputError(f"{len(order)} examples to compare with{broken}: need at least 2")
        return cls(source, size, drawn[:half], drawn[half : 2 * half], about, unreadable)

    @property
    def notes(self) -> list[str]:
        """What to know of the draw before figures are read."""
        count = len(self.unreadable)
        told = f"{count} example{'s' * (count > 1)} could not be read and had no part in the draw: "
        return [told + self.unreadable[0]] if count else []

    def prompts(self, count: int, seed: int, reader: str, classes: Sequence[str] | None) -> list[str | int]:
        """What each of `count` images is drawn of: a caption or the class of each held-out image, in turn.

        Args:
            reader: what draws them, for errors.
            classes: that it draws; None where it reads captions. Those of the data are found among them by name, and by
                number where one side has no names.

        Raises:
            InputError: the data has no captions, or no classes, or others.
        """
        examples = self._in_turn(count)
        if classes is None:
            if without := [each.key for each in examples if not each.captions]:
                raise InputError(f"{reader} draws captions, but the data has none of {shown(without[0])}")
            return list(self.captions(count, seed))
        numbers = self._numbers(reader, list(classes))
        for each in examples:
            if each.label is None or not 0 <= each.label < len(numbers):
                found = "no class" if each.label is None else f"class {each.label}"
                raise InputError(f"{reader} draws {len(classes)} classes, but {shown(each.key)} has {found}")
        return [numbers[each.label] for each in examples if each.label is not None]

    def captions(self, count: int, seed: int) -> list[str]:
        """The words for each of `count` images: a caption of each held-out image, else the name of its class, in turn.

        Raises:
            InputError: it has neither.
        """
        rng, names, words = random.Random(seed + 1), _named(self.source.class_names), []
        for each in self._in_turn(count):
            if not each.captions and (each.label is None or not 0 <= each.label < len(names)):
                raise InputError(f"the data has neither a caption nor a class with a name of {shown(each.key)}")
            words.append(rng.choice(each.captions) if each.captions else names[each.label or 0])
        return words

    def _in_turn(self, count: int) -> list[Drawn]:
        return [self.about[self.held_out[number % len(self.held_out)]] for number in range(count)]

    def _numbers(self, reader: str, classes: list[str]) -> Sequence[int]:
        """By the label of the data, the number of that class."""
        names = list(self.source.class_names)
        if not names or names == classes:
            return range(len(classes))
        try:
            numbers: list[int] = LabelEncoder(classes)(names)[0].tolist()
        except InputError as error:
            if not _named(classes):
                return range(len(classes))
            raise InputError(f"{reader} draws other classes than the data has: {error}") from None
        return numbers

    def images(self, indices: Sequence[int], change: Change | None = None) -> Images:
        """The images of these examples, each changed where there is a change."""
        try:
            images = [self.source[index].image for index in indices]
        except BrokenExample as error:
            raise InputError(f"{error}; it could be read a moment ago") from None
        return torch.stack([to_pixels(change(image) if change else image) for image in images])

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of these examples, what changes with any of them."""
        return digest_of(self.size, *(self.about[index].digest for index in indices))


def _look_at(source: Source, index: int) -> Drawn:
    """Raises BrokenExample."""
    example = source[index]
    digest = source.digest(index) if isinstance(source, Traceable) else ""
    return Drawn(
        example.key, example.captions, example.label, digest or digest_of(example.key, example.image.tobytes())
    )


def _named(classes: Sequence[str]) -> list[str]:
    """The names of classes; none of those that are called by their numbers."""
    return [] if list(classes) == [str(number) for number in range(len(classes))] else list(classes)


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
        parts, share = (
            (4, "a quarter for each side of validation") if settings.validation else (2, "half for each side")
        )
        least = parts * max(metric.min_images for metric in metrics)
        broken = f" ({len(reference.unreadable)} unreadable)" * bool(reference.unreadable)
        there = f"data {settings.data!r} has {len(source)} images{broken}, {share}: {error}"
        raise InputError(f"{there}; {least} images are enough") from None
    return reference


def real_features(evaluation: Evaluation, reference: Reference) -> ImageFeatures:
    """The real images, without captions, which are of those that images are generated for."""
    return _features(evaluation, reference, "real", reference.real)


def control_features(evaluation: Evaluation, reference: Reference) -> dict[str, ImageFeatures]:
    """The controls by name: other real images, and these degraded in two ways."""
    captions = reference.captions(len(reference.held_out) if evaluation.scorers else 0, evaluation.seed)

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
