"""What each sample counts in the loss: weights of intervals, of a sample's own residual, and of cells of (t, r)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from anystep.transport import Times, Transport

WeightKind = Literal["sqrt", "constant", "reciprocal", "square", "soft_min_snr"]


def interval_weight(transport: Transport, t: Times, r: Times, kind: str = "sqrt", tangent: bool = True) -> Times:
    """w(t, r), which favours short intervals (eq. 15 and table 12); 1 where t = r.

    With d = tan t - tan r (or t - r without `tangent`) and s = sigma_data: `sqrt` is (s + d)^(-1/2), `reciprocal`
    1/(s + d), `square` 1/(s + d)^2, `soft_min_snr` 1/(s^2 + d^2), `constant` 1. Times beyond pi/2, where the tangent
    turns over (`edm` and `ve`), are never warped.
    """
    if kind not in get_args(WeightKind):
        raise ValueError(f"unknown interval weight {kind!r}: choose one of {', '.join(get_args(WeightKind))}")
    s = transport.sigma_data
    d = t.tan() - r.tan() if tangent and transport.t_max < math.pi / 2 else t - r
    weight = {
        "sqrt": lambda: (s + d).rsqrt(),
        "constant": lambda: torch.ones_like(t),
        "reciprocal": lambda: 1 / (s + d),
        "square": lambda: 1 / (s + d).square(),
        "soft_min_snr": lambda: 1 / (s**2 + d.square()),
    }[kind]()
    return torch.where(t == r, torch.ones_like(t), weight)


@dataclass(frozen=True)
class Weighting:
    """The weight of each sample's residual in the loss.

    Args:
        interval, tangent: of `interval_weight`.
        power: each residual l is divided by stopgrad(l + 1e-5)^power. At 1 (TiM; MeanFlow, arXiv
            2505.13447) the loss is that of log l, whose minimiser at t = r is a mode of the velocity rather
            than its mean; at 0 it is the plain mean; between the two, outliers count less and the bias is small.
    """

    interval: WeightKind = "sqrt"
    tangent: bool = True
    power: float = 1.0

    def __call__(self, transport: Transport, t: Times, r: Times, residual: Times) -> Times:
        """The weights, (batch,), without gradient."""
        weight = interval_weight(transport, t, r, self.interval, self.tangent)
        if self.power == 1:
            return weight / (residual.detach() + 1e-5)
        if self.power == 0:
            return weight
        return weight / (residual.detach() + 1e-5).pow(self.power)
