"""The kernel distance between two sets of images (KID, arXiv 1801.01401, section 4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.errors import InputError

Features = Float[Tensor, "_ _"]  # a row a sample


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def squared_mmd(real: Features, other: Features) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / width + 1)^3; may be below zero.

    Raises:
        InputError: fewer than two rows, or different widths.
    """
    if min(len(real), len(other)) < 2 or real.shape[1] != other.shape[1]:
        raise InputError(
            f"kernel distance of {tuple(real.shape)} and {tuple(other.shape)}: need >= 2 rows, equal widths"
        )
    real, other = real.double(), other.double()
    m, n, width = len(real), len(other), real.shape[1]
    within_real = (real @ real.T / width + 1) ** 3
    within_other = (other @ other.T / width + 1) ** 3
    between = (real @ other.T / width + 1) ** 3
    return float(
        (within_real.sum() - within_real.trace()) / (m * (m - 1))
        + (within_other.sum() - within_other.trace()) / (n * (n - 1))
        - 2 * between.mean()
    )


def kernel_distance(
    real: Features, other: Features, subsets: int = 20, subset_size: int = 500, seed: int = 0
) -> Estimate:
    """1000 x the squared discrepancy of all samples, with an interval from the spread over random subsets.

    The deviation over subsets of size s is scaled to n samples by sqrt(s / n). Where the two sets are alike the true
    one falls faster, as s / n, and the interval is too wide.

    Raises:
        InputError: too few samples; says how many are needed.
    """
    count = min(len(real), len(other))
    if count < subset_size:
        raise InputError(f"kernel distance needs at least {subset_size} samples on each side, got {count}")
    generator = torch.Generator().manual_seed(seed)

    def subset(features: Features) -> Features:
        return features[torch.randperm(len(features), generator=generator)[:subset_size]]

    parts = torch.tensor([squared_mmd(subset(real), subset(other)) for _ in range(subsets)])
    value = 1000 * squared_mmd(real, other)
    margin = 1.96 * 1000 * parts.std().item() * (subset_size / count) ** 0.5
    return Estimate(value, value - margin, value + margin)
