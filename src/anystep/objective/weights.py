"""Loss weights: by the interval, by the size of a sample's own residual, and by the usual residual at its (t, r)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def c_noise_fraction(transport: Transport, time: Times) -> Times:
    """The place of a time in the range of c_noise: 0 at t_min, 1 at t_max."""
    low, high = (transport.c_noise(_scalar(end)) for end in (transport.t_min, transport.t_max))
    return (transport.c_noise(time) - low) / (high - low)


def c_noise_bin(transport: Transport, time: Times, bins: int) -> Int[Tensor, " batch"]:
    """Which of `bins` equal parts of the range of c_noise each time falls into."""
    return (c_noise_fraction(transport, time) * bins).long().clamp(0, bins - 1)


class RunningMean(nn.Module):
    """Residuals against the running mean m of their cell of (t, r): l / m where t = r, log(1 + l / m) where t > r.

    It equalises pairs of times, and not samples: where t = r the error stays quadratic, so that its minimiser is
    the mean of the velocity; where t > r the logarithm bounds the influence of outliers. Cells are 8 equal parts of
    c_noise of both times; t = r has 8 cells of its own.

    Attributes:
        sums, counts: of the residuals of each cell (t, r) and, in the last column, (t, t). Both fade by `decay` with
            every step that sees the cell, so that a cell that is rarely seen keeps its mean.
    """

    sums: Float[Tensor, "bins columns"]
    counts: Float[Tensor, "bins columns"]

    def __init__(self, bins: int = 8, decay: float = 0.99) -> None:
        super().__init__()
        self.bins, self.decay = bins, decay
        self.register_buffer("sums", torch.zeros(bins, bins + 1))
        self.register_buffer("counts", torch.zeros(bins, bins + 1))

    def cell(self, transport: Transport, t: Times, r: Times) -> Int[Tensor, " batch"]:
        """The number of each pair's cell, row by row."""
        column = torch.where(t == r, self.bins, c_noise_bin(transport, r, self.bins))
        return c_noise_bin(transport, t, self.bins) * (self.bins + 1) + column

    def forward(self, transport: Transport, t: Times, r: Times, residual: Times) -> Times:
        """The loss of each sample, (batch,). The mean of its cell includes the sample itself: a cell may be empty."""
        cell = self.cell(transport, t, r)
        mean = (self.sums.flatten()[cell] + residual.detach()) / (self.counts.flatten()[cell] + 1)
        ratio = residual / mean.clamp(min=1e-8)
        return torch.where(t == r, ratio, ratio.log1p())

    @torch.no_grad()
    def update(self, transport: Transport, t: Times, r: Times, residual: Times) -> None:
        """Add the residuals of a step, of all processes together; those that are not finite are left out.

        Computed on the CPU, so that the order of summation is the same on every device.
        """
        finite = residual.isfinite()
        t, r, residual = (each[finite].cpu() for each in (t, r, residual))
        cell = self.cell(transport, t, r)
        sums = torch.zeros(self.sums.numel(), dtype=torch.float32, device="cpu").index_add_(0, cell, residual.float())
        counts = torch.bincount(cell, minlength=self.sums.numel())
        for kept, added in ((self.sums, sums), (self.counts, counts)):
            kept.mul_(torch.full_like(sums, self.decay).where(counts > 0, 1.0).view_as(kept).to(kept))
            kept.add_(added.view_as(kept).to(kept))


class Uncertainty(nn.Module):
    """Learned uncertainty u of the residual l: e^-u l + u, which is least where u(t, r) is the logarithm of l's mean.

    EDM2 (arXiv 2312.02696) over t, and Lagrangian self-distillation (arXiv 2505.18825) over two times. u is linear in
    products of cosines of c_noise of both times, with coefficients of its own for t = r, where the target is another.

    Attributes:
        weight: coefficients of the cosines, for t > r and for t = r; zero at the start.
    """

    def __init__(self, frequencies: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, frequencies, frequencies))

    def level(self, transport: Transport, t: Times, r: Times) -> Times:
        """u(t, r), (batch,)."""
        waves = torch.arange(self.weight.shape[1], device=t.device) * math.pi
        of_t, of_r = ((c_noise_fraction(transport, time)[:, None] * waves).cos() for time in (t, r))
        # no matrix product, which autocast would round
        moving, same = ((weight * of_t[:, :, None] * of_r[:, None]).sum((1, 2)) for weight in self.weight)
        return torch.where(t == r, same, moving)

    def forward(self, transport: Transport, t: Times, r: Times, residual: Times) -> Times:
        """The loss of each sample, (batch,)."""
        u = self.level(transport, t, r)
        return (-u).exp() * residual + u

    def update(self, transport: Transport, t: Times, r: Times, residual: Times) -> None:
        """Does nothing, since `weight` is learned by gradient descent."""


Normaliser = RunningMean | Uncertainty


@dataclass(frozen=True)
class Weighting:
    """The loss of each sample from its residual.

    Args:
        interval, tangent: `kind` and `tangent` of `interval_weight`.
        power: each residual l is divided by stopgrad(l + 1e-5)^power. At 1 (TiM; MeanFlow, arXiv
            2505.13447) the loss is that of log l, whose minimiser at t = r is a mode of the velocity rather
            than its mean; at 0 it is the plain mean; between the two, outliers count less and the bias is small.
        normaliser: what equalises pairs of times in addition, with a state of its own. A running mean needs power 0,
            since its logarithm does what the power does; a learned uncertainty needs a power below 1, since 1
            makes every residual 1.
    """

    interval: WeightKind = "sqrt"
    tangent: bool = True
    power: float = 1.0
    normaliser: Normaliser | None = None

    def __call__(self, transport: Transport, t: Times, r: Times, residual: Times) -> Times:
        """The loss of each sample, (batch,)."""
        weight = interval_weight(transport, t, r, self.interval, self.tangent)
        own = (residual.detach() + 1e-5).pow(self.power)
        if self.normaliser is None:
            return weight / own * residual
        return weight * self.normaliser(transport, t, r, residual / own)
