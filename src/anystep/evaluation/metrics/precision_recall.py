"""Fidelity and diversity apart, from nearest neighbours.

Precision and recall: arXiv 1904.06991, equations 1 and 2. Density and coverage: arXiv 2002.09797, equations 5 and 7.
Replicates redraw both sets: a neighbourhood counts as often as its centre was drawn, and keeps its radius.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anystep.evaluation.metrics.base import Better, Counts, Observed

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
    x: Features, centres: Features, counts: Float[Tensor, "replicates centres"]
) -> Float[Tensor, "replicates count"]:
    """In how many of the centres that a replicate has drawn each image lies."""
    return torch.cat([counts.float() @ rows.T.float() for rows in within(x, centres)], 1).double()


class _Share:
    better: Better = "higher"
    least = 2 * NEIGHBOURS
    replicates = 200


class Precision(_Share):
    """The share of made images that lie in the neighbourhood of a real one."""

    name = "precision"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        return _mean(times_within(made.features, real.features, counts.real) > 0, counts.made)


class Recall(_Share):
    """The share of real images that lie in the neighbourhood of a made one."""

    name = "recall"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        return _mean(times_within(real.features, made.features, counts.made) > 0, counts.real)


class Density(_Share):
    """In how many real neighbourhoods a made image lies, over the number of neighbours; may exceed 1."""

    name = "density"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        return _mean(times_within(made.features, real.features, counts.real) / NEIGHBOURS, counts.made)


class Coverage(_Share):
    """The share of real images in whose neighbourhood a made one lies."""

    name = "coverage"

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        hits = torch.zeros_like(counts.real, dtype=torch.float32)
        rows = counts.made.float().split(ROWS, dim=1)
        for drawn, inside in zip(rows, within(made.features, real.features), strict=True):
            hits += drawn @ inside.float()
        return _mean(hits > 0, counts.real)


def _mean(
    values: Float[Tensor, "replicates count"] | Bool[Tensor, "replicates count"],
    counts: Float[Tensor, "replicates count"],
) -> Float[Tensor, " replicates"]:
    return (counts * values).sum(1) / counts.sum(1)
