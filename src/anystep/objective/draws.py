"""Which pairs of times (t, r) a network is trained on."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.transport import Times, Transport

NORMALS, UNIFORMS = 3, 6  # standard normal and uniform numbers that the times of one sample are computed from


@dataclass(frozen=True)
class TimeDistribution:
    """A distribution of single times: the transport's own, with another mean and width, mixed with a uniform one.

    Args:
        mean, std: of the normal number that the transport makes a time of.
        uniform: probability that a time is uniform over the transport's whole range instead (pMF, arXiv 2601.22158,
            has 0.1), so that no time is left to extrapolation.
    """

    mean: float
    std: float
    uniform: float = 0.0

    def times(self, transport: Transport, normal: Times, uniform: Times, mixed: Times) -> Times:
        """Times from standard normal and uniform draws; `mixed` are uniform too, and choose between the two."""
        own: Any = transport
        if hasattr(transport, "mean"):  # training times of `vp` and `ve` are made of uniform numbers alone
            own = replace(own, mean=self.mean, std=self.std)
        times: Times = own.times(normal, uniform)
        if not self.uniform:
            return times
        anywhere = transport.t_min + (transport.t_max - transport.t_min) * (mixed / self.uniform).clamp(max=1)
        return torch.where(mixed < self.uniform, anywhere, times)


@dataclass(frozen=True)
class TimeDraws:
    """Pairs t >= r, drawn for each sample independently, so that the probabilities hold at batch size 1 too.

    Args:
        diffusion_share: probability that a sample has r = t (plain diffusion).
        consistency_share: probability that a sample has r = t_min (a consistency model).
        diffusion: distribution of t where r = t. By default (TiM, arXiv 2509.04394, and MeanFlow) t is the larger of
            two draws, as in every other pair, so that times of little noise are hardly seen; a distribution makes it
            a single draw.
        later, earlier: distributions of the two draws whose larger one is t and whose smaller one is r; by default the
            transport's own.
    """

    diffusion_share: float = 0.5
    consistency_share: float = 0.1
    diffusion: TimeDistribution | None = None
    later: TimeDistribution | None = None
    earlier: TimeDistribution | None = None

    def __call__(
        self,
        transport: Transport,
        normal: Float[Tensor, "batch 3"],
        uniform: Float[Tensor, "batch 6"],
        shift: Times | None = None,
    ) -> tuple[Times, Times]:
        """(t, r) from standard normal and uniform draws, each sample's moved by its own `Transport.shift`."""

        def one(place: int, distribution: TimeDistribution | None) -> Times:
            draws = normal[:, place], uniform[:, (0, 1, 3)[place]]
            if distribution is None:
                times = transport.times(*draws)
            else:  # which are independent where both are of one pair, so that it does not collapse to t = r
                times = distribution.times(transport, *draws, uniform[:, (4, 5, 4)[place]])
            return times if shift is None else transport.shift(times, shift)

        first, second, category = one(0, self.later), one(1, self.earlier), uniform[:, 2]
        t, r = torch.maximum(first, second), torch.minimum(first, second)
        r = torch.where(category >= 1 - self.consistency_share, torch.full_like(r, transport.t_min), r)
        flat = t if self.diffusion is None else one(2, self.diffusion)
        same = category < self.diffusion_share
        return torch.where(same, flat, t), torch.where(same, flat, r)
