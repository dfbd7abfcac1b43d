"""Fidelity and diversity apart, from nearest neighbours.

Precision and recall: arXiv 1904.06991, equations 1 and 2. Density and coverage: arXiv 2002.09797, equations 5 and 7.
Replicates redraw both sets: a neighbourhood counts as often as its centre was drawn, and keeps its radius.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anystep.evaluation.metrics.base import BootstrapWeights, Direction, ImageFeatures, Replicates

NEIGHBOURS = 5
ROWS = 1024  # distances of so many images are held at a time
Features = Float[Tensor, "_ width"]


def radii(x: Features) -> Float[Tensor, " count"]:
    """From each image to its fifth nearest neighbour in its own set."""
    x = x.double()
    # the nearest is the image itself
    return torch.cat([torch.cdist(rows, x).kthvalue(NEIGHBOURS + 1, dim=1).values for rows in x.split(ROWS)])


def within(x: Features, centres: Features) -> Iterator[Bool[Tensor, "rows centres"]]:
    """Whether each image lies in the neighbourhood of each centre, some rows at a time."""
    reach, centres = radii(centres), centres.double()
    for rows in x.double().split(ROWS):
        yield torch.cdist(rows, centres) <= reach


def times_within(
    x: Features, centres: Features, weights: Float[Tensor, "replicates centres"]
) -> Float[Tensor, "replicates count"]:
    """In how many of the centres that a replicate has drawn each image lies."""
    return torch.cat([weights.float() @ rows.T.float() for rows in within(x, centres)], 1).double()


class _Share:
    direction: Direction = "higher"
    min_images = 2 * NEIGHBOURS
    replicates = 200


class Precision(_Share):
    """The share of generated images that lie in the neighbourhood of a real one."""

    name = "precision"

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        return _mean(times_within(generated.features, real.features, weights.real) > 0, weights.generated)


class Recall(_Share):
    """The share of real images that lie in the neighbourhood of a generated one."""

    name = "recall"

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        return _mean(times_within(real.features, generated.features, weights.generated) > 0, weights.real)


class Density(_Share):
    """In how many real neighbourhoods a generated image lies, over the number of neighbours; may exceed 1."""

    name = "density"

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        return _mean(times_within(generated.features, real.features, weights.real) / NEIGHBOURS, weights.generated)


class Coverage(_Share):
    """The share of real images in whose neighbourhood a generated one lies."""

    name = "coverage"

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        hits = torch.zeros_like(weights.real, dtype=torch.float32)
        rows = weights.generated.float().split(ROWS, dim=1)
        for drawn, inside in zip(rows, within(generated.features, real.features), strict=True):
            hits += drawn @ inside.float()
        return _mean(hits > 0, weights.real)


def _mean(
    values: Float[Tensor, "replicates count"] | Bool[Tensor, "replicates count"],
    weights: Float[Tensor, "replicates count"],
) -> Replicates:
    return (weights * values).sum(1) / weights.sum(1)
