"""What a metric is, and how sure one can be of its figure.

A metric is a function of two sets of images and of bootstrap weights: how often each image counts. Counting every image
once gives the figure; counting them as often as a draw with replacement finds them gives a bootstrap replicate of it.
Step counts that share their seeds share these draws, so that their differences are paired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from anystep.errors import InputError
from anystep.seeds import generator_of

Images = UInt8[Tensor, "batch 3 height width"]
Replicates = Float[Tensor, " replicates"]
Direction: TypeAlias = Literal["lower", "higher", "nearest 1"]


@dataclass(frozen=True)
class ImageFeatures:
    """What metrics need to know of a set of images.

    Attributes:
        features: one row an image.
        logits: of the extractor's classifier, if it has one.
        scores: numbers that belong to each image alone, such as how well it fits its caption, by metric.
        pixels: `pixels.small_pixels` of each image.
        fine_energy: `pixels.fine_energy` of each image.
    """

    features: Float[Tensor, "count width"]
    logits: Float[Tensor, "count classes"] | None = None
    scores: Mapping[str, Float[Tensor, " count"]] = field(default_factory=dict)
    pixels: Float[Tensor, "count channels area"] | None = None
    fine_energy: Float[Tensor, " count"] | None = None

    def __len__(self) -> int:
        return len(self.features)


class BootstrapWeights(NamedTuple):
    """How often each image counts in each replicate, a row a replicate; the first row is all ones."""

    real: Float[Tensor, "replicates n_real"]
    generated: Float[Tensor, "replicates n_generated"]

    def __getitem__(self, rows: slice) -> "BootstrapWeights":  # type: ignore[override]
        return BootstrapWeights(self.real[rows], self.generated[rows])


@runtime_checkable
class Metric(Protocol):
    """Add one by writing a class with these and putting it into `anystep.evaluation.metrics.registry.METRICS`.

    Attributes:
        name: without the extractor's, which is put in front.
        direction: which figures are better: lower ones, higher ones, or those nearest to 1 (2 is as far as 0.5).
        min_images: the number of images that each set must have at least.
        replicates: the number of bootstrap replicates that are worth their time.
    """

    name: str
    direction: Direction
    min_images: int
    replicates: int

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates: ...


@runtime_checkable
class Scorer(Protocol):
    """A number for each image and its caption, under a name of its own.

    `note` says what to know before reading it, `digest` tells one set of weights from another.
    """

    name: str

    @property
    def note(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def __call__(
        self, images: Images, features: Float[Tensor, "batch features"], captions: Sequence[str]
    ) -> Float[Tensor, " batch"]: ...


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def draw_bootstrap_weights(n_real: int, n_generated: int, replicates: int, seed: int = 0) -> BootstrapWeights:
    """Every image once, and then `replicates` draws with replacement of both sets."""

    def draw(count: int) -> Tensor:
        picked = torch.randint(count, (replicates, count), generator=generator)
        rows = torch.zeros(replicates, count, dtype=torch.float64).scatter_add_(
            1, picked, torch.ones(replicates, count, dtype=torch.float64)
        )
        return torch.cat([torch.ones(1, count, dtype=torch.float64), rows])

    generator = generator_of(seed)
    return BootstrapWeights(draw(n_real), draw(n_generated))


def measure(metric: Metric, real: ImageFeatures, generated: ImageFeatures, seed: int = 0) -> Replicates:
    """The figure and, after it, its bootstrap replicates. Raises `InputError`: fewer images than the metric needs."""
    if min(len(real), len(generated)) < metric.min_images:
        raise InputError(
            f"{metric.name} needs at least {metric.min_images} images on each side, "
            f"got {len(real)} real and {len(generated)} generated"
        )
    if real.features.shape[1] != generated.features.shape[1]:
        raise InputError(
            f"{metric.name}: the reference has {real.features.shape[1]} features an image, "
            f"the images have {generated.features.shape[1]}; use the extractor that made the reference"
        )
    try:
        return metric(real, generated, draw_bootstrap_weights(len(real), len(generated), metric.replicates, seed))
    except torch.linalg.LinAlgError as error:
        raise InputError(f"{metric.name} cannot be computed from these features: {error}") from None


def interval(replicates: Replicates) -> Estimate:
    """The figure with 1.96 standard deviations of its replicates on each side.

    Their quantiles would not do: a distance computed from repeated images is biased, its spread is not.
    """
    value, deviation = replicates[0].item(), replicates[1:].std().item()
    return Estimate(value, value - 1.96 * deviation, value + 1.96 * deviation)


def shortfall(figures: Replicates, direction: Direction) -> Replicates:
    """What is lower where a figure is better: the figure, its negative, or how far its logarithm is from 0."""
    if direction == "nearest 1":
        return figures.log().abs()
    return figures if direction == "lower" else -figures


def probability_not_worse(fewer: Replicates, more: Replicates, direction: Direction) -> float:
    """That the second figure is at least as good as the first: normal, from the spread of the paired differences."""
    gain = shortfall(fewer, direction) - shortfall(more, direction)
    value, deviation = gain[0].item(), gain[1:].std().item()
    if deviation == 0:
        return float(value >= 0)
    return 0.5 * (1 + math.erf(value / deviation / math.sqrt(2)))


def verdict(steps: list[int], probability: list[float], level: Sequence[int] = ()) -> str:
    """Monotonicity in words.

    Args:
        probability: that steps[i + 1] is not worse than steps[i], for each i.
        level: where both are the same.
    """
    worse = [place for place, chance in enumerate(probability) if chance < 0.05]
    if worse:
        return "gets worse " + ", ".join(f"from {steps[i]} to {steps[i + 1]} steps" for i in worse)
    better = [place for place, chance in enumerate(probability) if chance > 0.95 and place not in level]
    if len(better) == len(probability):
        return "gets better with every increase of steps"
    if not better:
        return "no difference between neighbouring step counts can be told"
    flat = [place for place in range(len(probability)) if place not in better]
    return "gets better or stays level; no difference can be told " + ", ".join(
        f"from {steps[i]} to {steps[i + 1]} steps" for i in flat
    )
