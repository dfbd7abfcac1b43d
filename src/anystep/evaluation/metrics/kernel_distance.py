"""The kernel distance between two sets of images (KID, arXiv 1801.01401, section 4)."""

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.evaluation.metrics.base import Better, Counts, Observed

Features = Float[Tensor, "_ width"]
BLOCK = 1024  # rows of a kernel that exist at a time


class KernelDistance:
    """1000 x the unbiased squared maximum mean discrepancy under k(x, y) = (x.y / width + 1)^3; may be below zero.

    The value over all pairs, not KID's mean over subsets: both have the same expectation.
    """

    name = "kernel_distance"
    better: Better = "lower"
    least = 50
    replicates = 200

    def __call__(self, real: Observed, made: Observed, counts: Counts) -> Float[Tensor, " replicates"]:
        x, y = real.features, made.features
        within = mean_within(x, counts.real) + mean_within(y, counts.made)
        return 1000 * (within - 2 * mean_between(x, y, counts))


def kernel(x: Features, y: Features) -> Float[Tensor, "rows columns"]:
    """k(x, y) of every pair of rows, in float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def mean_within(x: Features, counts: Float[Tensor, "replicates count"]) -> Float[Tensor, " replicates"]:
    """The mean of k over ordered pairs of different images, each pair as often as its images count."""
    total, pairs = torch.zeros(2, len(counts), dtype=torch.float64)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        block = kernel(x[rows], x)
        torch.diagonal(block, start).zero_()  # an image is never paired with itself, nor with its copies
        total = total + ((counts[:, rows] @ block) * counts).sum(1)
    pairs = counts.sum(1) ** 2 - counts.square().sum(1)
    return total / pairs


def mean_between(x: Features, y: Features, counts: Counts) -> Float[Tensor, " replicates"]:
    """The mean of k over pairs of an image of each set."""
    total = torch.zeros(len(counts.real), dtype=torch.float64)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        total = total + ((counts.real[:, rows] @ kernel(x[rows], y)) * counts.made).sum(1)
    return total / (counts.real.sum(1) * counts.made.sum(1))
