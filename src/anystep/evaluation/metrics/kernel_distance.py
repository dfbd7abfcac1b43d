"""The kernel distance between two sets of images (KID, arXiv 1801.01401, section 4)."""

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.evaluation.metrics.base import BootstrapWeights, Direction, ImageFeatures, Replicates

Features = Float[Tensor, "_ width"]
BLOCK = 1024  # rows of a kernel that exist at a time


class KernelDistance:
    """1000 x the unbiased squared maximum mean discrepancy under k(x, y) = (x.y / width + 1)^3; may be below zero.

    The value over all pairs, not KID's mean over subsets: both have the same expectation.
    """

    name = "kernel_distance"
    direction: Direction = "lower"
    min_images = 50
    replicates = 200

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        x, y = real.features, generated.features
        within = mean_within(x, weights.real) + mean_within(y, weights.generated)
        return 1000 * (within - 2 * mean_between(x, y, weights))


def kernel(x: Features, y: Features) -> Float[Tensor, "rows columns"]:
    """k(x, y) of every pair of rows, in float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def mean_within(x: Features, weights: Float[Tensor, "replicates count"]) -> Replicates:
    """The mean of k over ordered pairs of different images, each pair as often as its images count."""
    total, pairs = torch.zeros(2, len(weights), dtype=torch.float64)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        block = kernel(x[rows], x)
        torch.diagonal(block, start).zero_()  # an image is never paired with itself, nor with its copies
        total = total + ((weights[:, rows] @ block) * weights).sum(1)
    pairs = weights.sum(1) ** 2 - weights.square().sum(1)
    return total / pairs


def mean_between(x: Features, y: Features, weights: BootstrapWeights) -> Replicates:
    """The mean of k over pairs of an image of each set."""
    total = torch.zeros(len(weights.real), dtype=torch.float64)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        total = total + ((weights.real[:, rows] @ kernel(x[rows], y)) * weights.generated).sum(1)
    return total / (weights.real.sum(1) * weights.generated.sum(1))
