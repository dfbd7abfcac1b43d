"""Transports between data and noise, and the transitions between the times of one.

A transport is four scalar functions of time and a distribution of training times:

    x_t = alpha(t) x + sigma(t) z              between data x and noise z
    F   = alpha_hat(t) x + sigma_hat(t) z      the target of the network, which predicts it

Everything else follows from them (Transition Models, arXiv 2509.04394, section 3): with
D = alpha sigma_hat - sigma alpha_hat at t,

    x_r = A x_t + B F        A(t, r) = (alpha_r sigma_hat_t - sigma_r alpha_hat_t) / D
                             B(t, r) = (sigma_r alpha_t - alpha_r sigma_t) / D

Times have shape (batch,) and broadcast over samples of shape (batch, ...).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from anystep.bounds import PositiveCoefficient, PositiveShare, Share, check_options, shown
from anystep.errors import InputError

# bounds of options: each is a number of float32, and so are the logarithm and the reciprocal of a noise level
Level = Annotated[float, Ge(1e-6), Le(1e5)]
Angle = Annotated[float, Ge(0), Le(math.pi / 2)]
Deviation = Annotated[float, Ge(1e-3), Le(1e3)]
LogMean = Annotated[float, Ge(-20), Le(20)]
LogDeviation = Annotated[float, Ge(0), Le(20)]

TransportName = Literal["ot_fm", "trigflow", "edm", "vp", "ve"]
Sample = Float[Tensor, "batch *shape"]
Times = Float[Tensor, " batch"]


class Coefficients(NamedTuple):
    """The four functions of a transport at some times, or their time derivatives."""

    alpha: Tensor
    sigma: Tensor
    alpha_hat: Tensor
    sigma_hat: Tensor


@dataclass(frozen=True)
class Transport(ABC):
    """The algebra that all transports share.

    A transport is a frozen dataclass whose fields are its options, each with its bounds; it defines `coefficients`,
    `raw_times` and, where the network is not given t itself, `c_noise`.

    Attributes:
        t_min, t_max: the range of times, from data to noise.
        sigma_data: the standard deviation of the data.
    """

    name: ClassVar[str]
    t_min: float
    t_max: float
    sigma_data: float

    # --- what a transport defines ---------------------------------------------------------------------------------

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha, sigma, alpha_hat and sigma_hat at some times."""

    @abstractmethod
    def raw_times(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """Training times from standard normal and uniform draws, before they are clamped to the range."""

    def c_noise(self, t: Tensor) -> Tensor:
        """The time that the network is given for `t` (`c_noise` of EDM, arXiv 2206.00364, table 1)."""
        return t

    # --- what follows ---------------------------------------------------------------------------------------------

    def rates(self, t: Tensor) -> Coefficients:
        """Time derivatives of the four functions, exact by forward-mode differentiation."""
        tangents = torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[1]
        return Coefficients(*tangents)

    def interpolate(self, x: Sample, z: Sample, t: Times) -> Sample:
        """x_t, the point at time t between data x and noise z."""
        c = self.coefficients(t)
        return expand(c.alpha, x) * x + expand(c.sigma, z) * z

    def target(self, x: Sample, z: Sample, t: Times) -> Sample:
        """F, the instantaneous target of the network: what f(x_t, t, t) should be for this x and z."""
        c = self.coefficients(t)
        return expand(c.alpha_hat, x) * x + expand(c.sigma_hat, z) * z

    def target_rate(self, x: Sample, z: Sample, t: Times) -> Sample:
        """dF/dt at fixed x and z."""
        c = self.rates(t)
        return expand(c.alpha_hat, x) * x + expand(c.sigma_hat, z) * z

    def decompose(self, x_t: Sample, F: Sample, t: Times) -> tuple[Sample, Sample]:
        """The data x and noise z of a given x_t and F."""
        c = self.coefficients(t)
        determinant = c.alpha * c.sigma_hat - c.sigma * c.alpha_hat
        x = expand(c.sigma_hat / determinant, x_t) * x_t - expand(c.sigma / determinant, F) * F
        z = expand(c.alpha / determinant, F) * F - expand(c.alpha_hat / determinant, x_t) * x_t
        return x, z

    def transition_coefficients(self, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of `x_r = A x_t + B F`."""
        at_t, at_r = self.coefficients(t), self.coefficients(r)
        determinant = at_t.alpha * at_t.sigma_hat - at_t.sigma * at_t.alpha_hat
        A = (at_r.alpha * at_t.sigma_hat - at_r.sigma * at_t.alpha_hat) / determinant
        B = (at_r.sigma * at_t.alpha - at_r.alpha * at_t.sigma) / determinant
        return A, B

    def transition(self, x_t: Sample, F: Sample, t: Times, r: Times) -> Sample:
        """x_r, where the prediction F carries x_t from time t to time r."""
        A, B = self.transition_coefficients(t, r)
        return expand(A, x_t) * x_t + expand(B, F) * F

    def identity_scale(self, t: Tensor, r: Tensor) -> Tensor:
        """B / (dB/dt), the length of the derivative term in the state transition identity; 0 at t = r."""
        at_t, at_r, rate = self.coefficients(t), self.coefficients(r), self.rates(t)
        determinant = at_t.alpha * at_t.sigma_hat - at_t.sigma * at_t.alpha_hat
        determinant_rate = (
            rate.alpha * at_t.sigma_hat
            + at_t.alpha * rate.sigma_hat
            - rate.sigma * at_t.alpha_hat
            - at_t.sigma * rate.alpha_hat
        )
        numerator = at_r.sigma * at_t.alpha - at_r.alpha * at_t.sigma
        numerator_rate = at_r.sigma * rate.alpha - at_r.alpha * rate.sigma
        return numerator * determinant / (numerator_rate * determinant - numerator * determinant_rate)

    def transition_target(
        self, x: Sample, z: Sample, t: Times, r: Times, derivative: Sample, F: Sample | None = None
    ) -> Sample:
        """The state transition identity (arXiv 2509.04394, eq. 10): what f(x_t, t, r) should be.

        Args:
            x, z: data and noise.
            t, r: source and target times.
            derivative: df/dt, the total derivative of the network along x_t at fixed r; no gradient flows into it.
            F: the target at t = r, where it is not `target(x, z, t)`, such as a guided one.
        """
        if F is None:
            F = self.target(x, z, t)
        slope = self.target_rate(x, z, t) - derivative.detach()
        return F + expand(self.identity_scale(t, r), slope) * slope

    def shift(self, t: Tensor, by: Tensor | float) -> Tensor:
        """Times shifted towards noise, as larger images need: u -> s u / (1 + (s - 1) u) on the unit interval.

        SD3 (arXiv 2403.03206, eq. 23). t_min, t_max and the order of times are unchanged.
        """
        u = (t - self.t_min) / (self.t_max - self.t_min)
        moved = self.t_min + (self.t_max - self.t_min) * (by * u / (1 + (by - 1) * u))
        return moved.clamp(self.t_min, self.t_max)

    def times(self, normal: Times, uniform: Times) -> Times:
        """Training times in [t_min, t_max] from standard normal and uniform draws."""
        return self.raw_times(normal, uniform).clamp(self.t_min, self.t_max)

    def renoise(self, x_s: Sample, s: Times, r: Times, noise: Sample) -> Sample:
        """A draw of x_r given x_s, for s <= r: exact for every transport."""
        at_s, at_r = self.coefficients(s), self.coefficients(r)
        keep = at_r.alpha / at_s.alpha
        fresh = (at_r.sigma.square() - (keep * at_s.sigma).square()).clamp(min=0).sqrt()
        return expand(keep, x_s) * x_s + expand(fresh, noise) * noise


def expand(scalar: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ..., 1), on the device and in the precision of `like` when that is the finer one."""
    dtype = torch.promote_types(scalar.dtype, like.dtype)
    return scalar.to(like.device, dtype).view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class OTFlowMatching(Transport):
    """Straight lines from data to noise (rectified flow, arXiv 2209.03003), with logit-normal training times."""

    name: ClassVar[str] = "ot_fm"
    t_min: Share = 0.0
    t_max: PositiveShare = 1.0
    mean: LogMean = -0.4
    std: LogDeviation = 1.0
    sigma_data: Deviation = 1.0

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)

    def raw_times(self, normal: Tensor, uniform: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class TrigFlow(Transport):
    """A quarter of a circle from data to noise (TrigFlow of sCM, arXiv 2410.11081)."""

    name: ClassVar[str] = "trigflow"
    t_min: Angle = 0.0
    t_max: Angle = 1.57
    mean: LogMean = -1.0
    std: LogDeviation = 1.6
    sigma_data: Deviation = 1.0

    def coefficients(self, t: Tensor) -> Coefficients:
        return Coefficients(t.cos(), t.sin(), -t.sin(), t.cos())

    def raw_times(self, normal: Tensor, uniform: Tensor) -> Tensor:
        return torch.atan(torch.exp(self.mean + self.std * normal))


@dataclass(frozen=True)
class EDM(Transport):
    """EDM (arXiv 2206.00364) with x_t scaled to unit variance; exact for every `sigma_data`."""

    name: ClassVar[str] = "edm"
    t_min: Level = 0.01
    t_max: Level = 80.0
    mean: LogMean = -1.2
    std: LogDeviation = 1.2
    sigma_data: Deviation = 0.5

    def coefficients(self, t: Tensor) -> Coefficients:
        norm = (t.square() + self.sigma_data**2).sqrt()
        return Coefficients(1 / norm, t / norm, t / (self.sigma_data * norm), -self.sigma_data / norm)

    def raw_times(self, normal: Tensor, uniform: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * normal)

    def c_noise(self, t: Tensor) -> Tensor:
        return t.log() / 4


@dataclass(frozen=True)
class VariancePreserving(Transport):
    """The VP diffusion of score SDEs (arXiv 2011.13456), with the noise as its target."""

    name: ClassVar[str] = "vp"
    t_min: PositiveShare = 1e-5
    t_max: PositiveShare = 1.0
    beta_min: PositiveCoefficient = 0.1
    beta_d: PositiveCoefficient = 19.9
    sigma_data: Deviation = 1.0

    def coefficients(self, t: Tensor) -> Coefficients:
        ratio = torch.expm1(self.beta_d * t.square() / 2 + self.beta_min * t).sqrt()  # sigma / alpha
        alpha = (ratio.square() + 1).rsqrt()
        return Coefficients(alpha, ratio * alpha, torch.zeros_like(t), torch.ones_like(t))

    def raw_times(self, normal: Tensor, uniform: Tensor) -> Tensor:
        return self.t_min + (self.t_max - self.t_min) * uniform

    def c_noise(self, t: Tensor) -> Tensor:
        return 999 * t


@dataclass(frozen=True)
class VarianceExploding(Transport):
    """The VE diffusion of score SDEs (arXiv 2011.13456), with the negative noise as its target."""

    name: ClassVar[str] = "ve"
    t_min: Level = 0.02
    t_max: Level = 100.0
    sigma_data: Deviation = 1.0

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(one, t, torch.zeros_like(t), -one)

    def raw_times(self, normal: Tensor, uniform: Tensor) -> Tensor:
        return self.t_min * (self.t_max / self.t_min) ** uniform

    def c_noise(self, t: Tensor) -> Tensor:
        return torch.log(t / 2)


TRANSPORTS: dict[str, type[Transport]] = {
    kind.name: kind for kind in (OTFlowMatching, TrigFlow, EDM, VariancePreserving, VarianceExploding)
}


def make_transport(name: str, **options: Any) -> Transport:
    """A transport by name: `ot_fm`, `trigflow`, `edm`, `vp` or `ve`.

    Options are its fields: `sigma_data`, `t_min`, `t_max`, and `mean` and `std` of the training times (`ot_fm`,
    `trigflow`, `edm`) or `beta_min` and `beta_d` (`vp`).

    Raises:
        InputError: an unknown name, an unknown option, a value out of the bounds that the transport states for it, or
            values that leave no range of times or no finite coefficients.
    """
    if not isinstance(name, str) or name not in TRANSPORTS:
        raise InputError(f"unknown transport {shown(name)}: choose one of {', '.join(TRANSPORTS)}")
    kind = TRANSPORTS[name]
    transport = kind(**check_options("transport.options", kind.__init__, options))
    ends = torch.tensor([transport.t_min, transport.t_max], dtype=torch.float32, device="cpu")
    if not ends[0] < ends[1]:
        raise InputError(f"transport {name!r}: t_min {transport.t_min} must be below t_max {transport.t_max}")
    numbers = [*transport.coefficients(ends), *transport.rates(ends), transport.c_noise(ends)]
    numbers += transport.transition_coefficients(ends[1:], ends[:1])
    if not all(bool(each.isfinite().all()) for each in numbers):
        options_shown = ", ".join(f"{key} {value:g}" for key, value in asdict(transport).items())
        raise InputError(f"transport {name!r} with {options_shown}: no finite path in float32; choose milder options")
    return transport
