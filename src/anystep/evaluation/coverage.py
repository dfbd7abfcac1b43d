"""Fidelity and diversity apart, from nearest neighbours.

Precision and recall: arXiv 1904.06991, equations 1 and 2. Density and coverage: arXiv 2002.09797, equations 5 and 7.
Each is a mean over images of one set; replicates redraw those and leave the neighbourhoods as they are.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anystep.evaluation.metric import Counts, Observed

NEIGHBOURS = 5
Features = Float[Tensor, "_ width"]


def radii(x: Features) -> Float[Tensor, " count"]:
    """From each image to its fifth nearest neighbour in its own set."""
    distance = torch.cdist(x.double(), x.double())
    return distance.kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is the image itself


def within(x: Features, centres: Features) -> Bool[Tensor, "count centres"]:
    """Whether each image lies in the neighbourhood of each centre."""
    return torch.cdist(x.double(), centres.double()) <= radii(centres)


class _Share:
    better: Literal["lower", "higher"] = "higher"
    least = 2 * NEIGHBOURS
    replicates = 200


class Precision(_Share):
    """The share of made images that lie in the neighbourhood of a real one."""

    name = "precision"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        return _mean(within(made.features, real.features).any(1), counts.made)


class Recall(_Share):
    """The share of real images that lie in the neighbourhood of a made one."""

    name = "recall"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        return _mean(within(real.features, made.features).any(1), counts.real)


class Density(_Share):
    """In how many real neighbourhoods a made image lies, over the number of neighbours; may exceed 1."""

    name = "density"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        return _mean(within(made.features, real.features).sum(1) / NEIGHBOURS, counts.made)


class Coverage(_Share):
    """The share of real images in whose neighbourhood a made one lies."""

    name = "coverage"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        return _mean(within(made.features, real.features).any(0), counts.real)


def _mean(values: Tensor, counts: Float[Tensor, "replicates count"]) -> Float[Tensor, " replicates"]:
    return counts @ values.double() / counts.sum(1)
