"""The kernel distance between two sets of images (KID, arXiv 1801.01401, section 4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.errors import InputError

Features = Float[Tensor, "_ _"]  # a row a sample
Kernel = Float[Tensor, "_ _"]  # k(x, y) of every row x of one set and every row y of another


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def kernel(x: Features, y: Features) -> Kernel:
    """k(x, y) = (x.y / width + 1)^3 in float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def squared_mmd(real: Features, other: Features) -> float:
    """Unbiased squared maximum mean discrepancy under `kernel`; may be below zero.

    Raises:
        InputError: fewer than two rows, or different widths.
    """
    if min(len(real), len(other)) < 2 or real.shape[1] != other.shape[1]:
        raise InputError(
            f"kernel distance of {tuple(real.shape)} and {tuple(other.shape)}: need >= 2 rows, equal widths"
        )
    return _squared_mmd(kernel(real, real), kernel(other, other), kernel(real, other))


def kernel_distance(
    real: Features, other: Features, subsets: int = 100, subset_size: int = 500, seed: int = 0
) -> Estimate:
    """1000 x the squared discrepancy of all samples, with an interval from its spread over random subsets.

    The mean over subsets that KID reports has the same expectation and tends to this value as subsets are added. What
    subsets tell is how uncertain it is. They are drawn without replacement from the same n samples, so they overlap
    and agree more than fresh draws would: their deviation is scaled by sqrt(s / (n - s)) for subsets of size s (the
    delete-d jackknife; n is the smaller set's size, too wide for the other). Where the two sets are alike the true
    deviation falls faster, as 1 / n, and the interval is too wide.

    Raises:
        InputError: too few samples; says how many are needed.
    """
    count = min(len(real), len(other))
    if count <= subset_size:
        raise InputError(f"kernel distance needs at least {subset_size + 1} samples on each side, got {count}")
    value = squared_mmd(real, other)
    within_real, within_other, between = kernel(real, real), kernel(other, other), kernel(real, other)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(subsets):
        i = torch.randperm(len(real), generator=generator)[:subset_size]
        j = torch.randperm(len(other), generator=generator)[:subset_size]
        parts.append(_squared_mmd(within_real[i][:, i], within_other[j][:, j], between[i][:, j]))
    deviation = torch.tensor(parts).std().item() * (subset_size / (count - subset_size)) ** 0.5
    return Estimate(1000 * value, 1000 * (value - 1.96 * deviation), 1000 * (value + 1.96 * deviation))


def _squared_mmd(within_real: Kernel, within_other: Kernel, between: Kernel) -> float:
    """Section 4, equation 4: means over pairs, a sample never paired with itself."""
    m, n = between.shape
    return float(
        (within_real.sum() - within_real.trace()) / (m * (m - 1))
        + (within_other.sum() - within_other.trace()) / (n * (n - 1))
        - 2 * between.mean()
    )
