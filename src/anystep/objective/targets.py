"""Training targets: what a network should answer at (x_t, t, r) where t > r, without a solver or a teacher network.

At t = r every target is F = alpha_hat x + sigma_hat z, the instantaneous target of diffusion. Each target below is
exact where the network's answers in it are, and needs only ordinary forward passes without gradient.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from anystep.objective.derivatives import DERIVATIVE_COST, Derivative, derivative
from anystep.objective.evaluation import Evaluation, SampleIndex, TransitionPoints, forward_dtype
from anystep.transport import Sample, Times, Transport, expand


class TargetValue(NamedTuple):
    """A target and what it was computed from.

    Attributes:
        value: what f should be, one row a point.
        slope: the estimate of df/dt, where the target uses one.
        weight: (points,) the factor on the residual of each point; None is 1.
    """

    value: Sample
    slope: Sample | None = None
    weight: Times | None = None


@runtime_checkable
class Target(Protocol):
    """A rule for the target of samples with t > r."""

    @property
    def cost(self) -> int:
        """The number of network evaluations without gradient that a sample takes."""

    def __call__(self, at: TransitionPoints, evaluate: Evaluation, teacher: Evaluation, progress: float) -> TargetValue:
        """The target at these points.

        Args:
            evaluate: the network that is trained.
            teacher: the network that velocities and later points are taken from: the same, or its moving average.
            progress: the part of the training that is done, from 0 to 1.
        """


@dataclass(frozen=True)
class Identity:
    """The state transition identity (TiM, arXiv 2509.04394, eq. 10): F + (B / dB/dt) (dF/dt - df/dt).

    Args:
        estimate: the estimator of df/dt.
        along: the trajectory that df/dt is taken along. `path` is x_t at fixed x and z, as in the paper; `velocity`
            follows the network's own velocity v = f(x_t, t, t), which has the same mean and less noise (improved
            MeanFlow, arXiv 2512.02012), for one more evaluation.
        velocity_share: mixing weight of v in F, from 0 to 1: it brings less noise, and the bias of v.
    """

    estimate: Derivative = field(default_factory=derivative)
    along: Literal["path", "velocity"] = "path"
    velocity_share: float = 0.0

    @property
    def cost(self) -> int:
        return DERIVATIVE_COST[self.estimate.__name__] + self.needs_velocity

    @property
    def needs_velocity(self) -> bool:
        """Whether the target is computed from the velocity of the network."""
        return self.along == "velocity" or self.velocity_share > 0

    @torch.no_grad()
    def __call__(self, at: TransitionPoints, evaluate: Evaluation, teacher: Evaluation, progress: float) -> TargetValue:
        trajectory, target = at, at  # df/dt is taken along x and z of the first, F and dF/dt are those of the second
        if self.needs_velocity:
            v = teacher(at.x_t, at.t, at.t, at.sample_index) if at.v is None else at.v
            own = at.transport.decompose(at.x_t, v, at.t)
            if self.along == "velocity":
                trajectory = replace(at, x=own[0], z=own[1])
            x, z = (
                torch.lerp(given, found.to(given), self.velocity_share)
                for given, found in zip((at.x, at.z), own, strict=True)
            )
            target = replace(at, x=x, z=z, F=torch.lerp(at.F, v.to(at.F), self.velocity_share))
        slope = self.estimate(evaluate, trajectory)
        return TargetValue(at.transport.transition_target(target.x, target.z, at.t, at.r, slope, target.F), slope)


@dataclass(frozen=True)
class SelfConsistency:
    """The F that makes one step from t to r arrive where two steps of half the length do.

    Shortcut models (arXiv 2410.12557, eq. 5), for every transport: F = (x_r - A x_t) / B, x_r the end of the two steps.
    """

    cost: int = 2

    @torch.no_grad()
    def __call__(self, at: TransitionPoints, evaluate: Evaluation, teacher: Evaluation, progress: float) -> TargetValue:
        middle = (at.t + at.r) / 2
        x_s = at.transport.transition(at.x_t, teacher(at.x_t, at.t, middle, at.sample_index), at.t, middle)
        x_r = at.transport.transition(x_s, teacher(x_s, middle, at.r, at.sample_index), middle, at.r)
        return TargetValue(prediction_to(at, x_r))


@dataclass(frozen=True)
class Implicit:
    """The F whose transition ends where a transition from a slightly earlier time ends.

    alpha-Flow (arXiv 2510.20771) and SoFlow (arXiv 2512.15657): with s = t - ratio (t - r) and x_s interpolated from
    the same x and z, the transition t -> r must end where f(x_s, s, r) takes x_s. On straight lines the target is
    ratio F + (1 - ratio) f(x_s, s, r). At ratio 1 it is F itself; towards 0 it becomes the state transition identity,
    for one evaluation and without a division by a small step. Residuals are divided by the ratio, which an adaptive
    power of 1 undoes.

    Args:
        start, end: the ratio falls from `start` to `end` over the training.
        falls: along a logistic curve of its logarithm, or of itself (`linear`: alpha-Flow's, of slope 25, which goes on
            below `end` to MeanFlow's derivative in the paper, and stays there here).
    """

    start: float = 0.5
    end: float = 0.005
    falls: Literal["logarithmic", "linear"] = "logarithmic"
    cost: int = 1

    def ratio(self, progress: float) -> float:
        """The ratio when that part of the training is done, flat at both ends."""
        if self.falls == "linear":
            return max(self.end, self.start / (1 + math.exp(25 * (progress - 0.5))))
        low, high = math.log(self.end), math.log(self.start)
        return math.exp(low + (high - low) / (1 + math.exp(12 * (progress - 0.5))))

    @torch.no_grad()
    def __call__(self, at: TransitionPoints, evaluate: Evaluation, teacher: Evaluation, progress: float) -> TargetValue:
        ratio = self.ratio(progress)
        s = at.t - ratio * (at.t - at.r)
        # F may be guided: x_s is interpolated from the data and noise that it stands for at x_t
        x_s = at.transport.interpolate(*at.transport.decompose(at.x_t, at.F, at.t), s)
        x_r = at.transport.transition(x_s, teacher(x_s, s, at.r, at.sample_index).to(x_s), s, at.r)
        return TargetValue(prediction_to(at, x_r), weight=torch.full_like(at.t, 1 / ratio))


@dataclass(frozen=True)
class Terminal:
    """The Lagrangian identity: the end x_r of a transition moves with r at the velocity of the flow there.

    Lagrangian self-distillation (arXiv 2505.18825) and terminal velocity matching (arXiv 2511.19797), without
    a gradient through the derivative. With x_r = A x_t + B f and u the velocity dx/dt of the flow at (x_r, r),
    f <- (u - A_r x_t - B df/dr) / B_r, where A_r and B_r are derivatives in r. On straight lines:
    v(x_r, r) + (t - r) df/dr. Neither x nor z enters: given v, the target has no noise.

    Args:
        eps: step of the difference in r, relative to the interval: the factor B makes up for the division by it.
    """

    eps: float | None = None
    cost: int = 2

    @torch.no_grad()
    def __call__(self, at: TransitionPoints, evaluate: Evaluation, teacher: Evaluation, progress: float) -> TargetValue:
        transport, t, r = at.transport, at.t, at.r
        A, B = transport.transition_coefficients(t, r)
        A_r, B_r = transition_rates(transport, t, r)
        x_r = expand(A, at.x_t) * at.x_t + expand(B, at.f) * at.f
        ends = transport.decompose(x_r, teacher(x_r, r, r, at.sample_index).to(x_r), r)
        rate = transport.rates(r)
        u = expand(rate.alpha, x_r) * ends[0] + expand(rate.sigma, x_r) * ends[1]
        h = TERMINAL_EPS[forward_dtype(evaluate, at.f)] if self.eps is None else self.eps
        other = torch.maximum(r + h * (t - r), torch.nextafter(r, t))  # another time also where t is next to r
        slope = (evaluate(at.x_t, t, other, at.sample_index).to(at.f) - at.f) / expand(other - r, at.f)
        value = (u - expand(A_r, u) * at.x_t - expand(B, slope) * slope) / expand(B_r, u)
        # where B_r is small, x_r hardly depends on f, and the quotient is ill-conditioned
        weight = (B_r / transition_rates(transport, r, r)[1]).square()
        return TargetValue(value, slope, weight)


@dataclass(frozen=True)
class SelfEvaluation:
    """The data x, mixed with the data that f stands for after feedback from the network's own velocity.

    Self-E (arXiv 2512.22374), in F space. With x^ the data that f stands for, x^_r = alpha_r x^ + sigma_r z' for fresh
    noise z', x~ the data that the velocity at (x^_r, r) stands for, and l = sigma_t / alpha_t - sigma_r / alpha_r, the
    target stands for the data (x + l (x^ + x~(x^_r, r, c) - x~(x^_r, r, null))) / (1 + l), scaled to the norm of x. It
    is no identity: before the scaling its fixed point is x^ = E[x | x_t] + l (x~(c) - x~(null)), which is moved
    towards the condition, as guidance moves it. Where the condition changes nothing, or t = r, f is the velocity.

    Args:
        max_weight: the largest value of l, so that part of x is kept where alpha_t is nearly zero (not in the paper).
        renormalise: whether the data is scaled to the norm of x.
    """

    max_weight: float = 10.0
    renormalise: bool = True
    cost: int = 2

    @torch.no_grad()
    def __call__(self, at: TransitionPoints, evaluate: Evaluation, teacher: Evaluation, progress: float) -> TargetValue:
        if at.fresh_noise is None or at.null is None:
            raise ValueError("a self-evaluation target needs fresh_noise and null_condition")
        transport, r = at.transport, at.r
        x_hat, _ = transport.decompose(at.x_t, at.f, at.t)
        x_r = transport.interpolate(x_hat, at.fresh_noise, r)
        judged, null = (
            transport.decompose(x_r, ask(x_r, r, r, at.sample_index).to(x_r), r)[0] for ask in (teacher, at.null)
        )
        c, c_r = transport.coefficients(at.t), transport.coefficients(r)
        weight = (c.sigma / c.alpha - c_r.sigma / c_r.alpha).clamp(max=self.max_weight)
        data = torch.lerp(at.x.to(x_hat), x_hat + judged - null, expand(weight / (1 + weight), x_hat))
        if self.renormalise:
            norms = (sample_norms(each, at.sample_index) for each in (at.x, data))
            data = data * expand(next(norms) / next(norms).clamp(min=1e-12), data)
        # x_t is unchanged, so that other data means other noise
        return TargetValue(at.F + expand(c.alpha_hat - c.sigma_hat * c.alpha / c.sigma, data) * (data - at.x))


def sample_norms(values: Sample, sample_index: SampleIndex) -> Times:
    """For each row, the norm of the sample that it belongs to."""
    sums = torch.zeros(int(sample_index.max()) + 1, dtype=values.dtype, device=values.device)
    return sums.index_add(0, sample_index, values.square().flatten(1).sum(1))[sample_index].sqrt()


# only the embedding of the interval changes, so the step can be larger than that of df/dt
TERMINAL_EPS = {torch.float64: 0.001, torch.float32: 0.02, torch.float16: 0.04, torch.bfloat16: 0.08}


def transition_rates(transport: Transport, t: Times, r: Times) -> tuple[Tensor, Tensor]:
    """dA/dr and dB/dr of the transition from t to r, exact by forward-mode differentiation."""
    tangents = torch.func.jvp(lambda r: transport.transition_coefficients(t, r), (r,), (torch.ones_like(r),))[1]
    return tangents[0], tangents[1]


def prediction_to(at: TransitionPoints, x_r: Sample) -> Sample:
    """The F whose transition takes x_t from time t to `x_r` at time r."""
    A, B = at.transport.transition_coefficients(at.t, at.r)
    return (x_r - expand(A, at.x_t) * at.x_t) / expand(B, at.x_t)
