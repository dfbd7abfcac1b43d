"""Moving averages of the weights: exponential ones, power-function ones, and averages rebuilt from the latter.

Exponential averages forget at one rate. Power-function averages are those of EDM2 (Karras et al. 2023, arXiv
2312.02696, section 3). In the average at step t the weights of step s have the share
p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t]: it stretches with the run and forgets the beginning. Its length is
the standard deviation of p over t, which gamma determines. Profiles of two lengths, kept at several steps, nearly span
those of other lengths; least squares finds how much of each to take, which does not depend on the network at all.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from anystep.training.adapter import trained

Numbers = Float64[np.ndarray, " profiles"]

SMALLEST = 1e-12  # of the singular values that count, against the largest


@torch.no_grad()
def update_ema(averages: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], decays: Sequence[float]) -> None:
    """average <- decay average + (1 - decay) weights, for each average of the same weights.

    Averages that are sharded as the weights are need no communication.
    """
    for average, decay in zip(averages, decays, strict=True):
        torch._foreach_lerp_(list(average), list(weights), 1 - decay)


class ExponentialAverages:
    """Networks that hold exponential moving averages of the weights of another.

    Args:
        networks: one for each decay, which start as copies of the network and are sharded as it is.
        decays: the decay of each once it has warmed up.
    """

    def __init__(self, networks: Sequence[nn.Module], decays: Sequence[float]) -> None:
        self.decays = decays
        # listed once: walking through a network takes as long as averaging it
        self._weights = [trained(each) for each in networks]

    def update(self, weights: Sequence[Tensor], step: int) -> None:
        """Take in the weights of a step that moved them, 0 being the first."""
        # less at the beginning, so that the random start is forgotten
        update_ema(self._weights, weights, [min(decay, (1 + step) / (10 + step)) for decay in self.decays])


def length_to_gamma(length: float) -> float:
    """The exponent whose profile has this standard deviation over t: the real root above -1 of a cubic.

    The deviation is (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2).
    """
    square = length**-2.0
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def power_decay(gamma: float, step: int) -> float:
    """beta_t = (1 - 1/t)^(gamma + 1): average <- beta average + (1 - beta) weights has the profile at every step.

    Args:
        step: t, which is 1 at the first step: its average is the weights themselves, and holds nothing of the start.
    """
    return float((1 - 1 / step) ** (gamma + 1))


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Where a run of so many steps keeps its averages: evenly, the last step included; fewer where steps are few."""
    return sorted({-(-place * steps // count) for place in range(1, count + 1)})


def dot(
    gammas: Float64[np.ndarray, "*shape"], times: Float64[np.ndarray, "*shape"],
    other_gammas: Float64[np.ndarray, "*other"], other_times: Float64[np.ndarray, "*other"],
) -> Float64[np.ndarray, "..."]:  # fmt: skip
    """The integral of the product of two profiles, in closed form and without large powers; shapes broadcast.

    With a and b the gammas and t the smaller time, whose profile has exponent a, and T the larger:
    (a + 1)(b + 1) / (a + b + 1) (t / T)^b / T.
    """
    later = np.maximum(times, other_times)
    exponent = np.where(times < other_times, other_gammas, gammas)  # of the profile that reaches further
    ratio = np.minimum(times, other_times) / later
    product: np.ndarray = (gammas + 1) * (other_gammas + 1) / (gammas + other_gammas + 1) * ratio**exponent / later
    return product


def fit(
    lengths: Numbers, steps: Numbers, wanted: Float64[np.ndarray, " wanted"], end: float
) -> tuple[Float64[np.ndarray, "wanted profiles"], Float64[np.ndarray, " wanted"]]:
    """For averages of the wanted lengths at step `end`: the weights of those that were kept, and how far off that is.

    The weighted profiles are nearest to the wanted one in least squares among weights that sum to one, so that what
    never moved is exactly what it was.

    Args:
        lengths, steps: of each kept average.
        end: at least the last of `steps`.

    Returns:
        The weights, and the norm of the difference of profiles over that of the wanted profile.
    """
    gammas = np.array([length_to_gamma(each) for each in lengths])
    targets = np.array([length_to_gamma(each) for each in wanted])
    times, ends = steps / end, np.ones(len(wanted))
    norms = np.sqrt(dot(gammas, times, gammas, times))  # profiles of norm one, else early ones outweigh late ones
    among = dot(gammas[:, None], times[:, None], gammas[None], times[None]) / norms[:, None] / norms
    with_wanted = dot(gammas[:, None], times[:, None], targets[None], ends[None]) / norms[:, None]
    free, ones = np.linalg.lstsq(among, np.c_[with_wanted, 1 / norms], rcond=SMALLEST)[0], 1 / norms
    free, along = free[:, :-1], free[:, -1:]
    scaled = free + along * (1 - ones @ free) / (ones @ along)
    lost = dot(targets, ends, targets, ends) - 2 * (scaled * with_wanted).sum(0) + (scaled * (among @ scaled)).sum(0)
    return (scaled / norms[:, None]).T, np.sqrt(np.maximum(lost, 0) / dot(targets, ends, targets, ends))
