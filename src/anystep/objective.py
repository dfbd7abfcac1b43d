"""The training objective: the state transition identity, its derivative estimators, weights and loss.

Equations are those of Transition Models (TiM, arXiv 2509.04394). A network is any callable
`network(x, t, r, condition, condition_mask=None)`; inside this file it is seen through an `Evaluation`, which binds the
condition and translates times.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as functional
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anystep.packing import Packing
from anystep.transport import Sample, Times, Transport, expand

WeightKind = Literal["sqrt", "constant", "reciprocal", "square", "soft_min_snr"]
DerivativeKind = Literal["central", "forward_mode", "one_sided"]
TargetKind = Literal["identity", "self_consistency"]
# network evaluations that a target of a sample with t > r costs
TARGET_COST = {"central": 2, "one_sided": 1, "forward_mode": 2, "self_consistency": 2}
Rows = Int[Tensor, " rows"]
# evaluate(x_t, t, r, rows) -> F, where rows[i] says which sample x_t[i] belongs to
Evaluation = Callable[[Tensor, Tensor, Tensor, Rows], Tensor]
# estimate(evaluate, transport, x, z, t, r, rows, value) -> df/dt, where value is f(x_t, t, r)
Derivative = Callable[[Evaluation, Transport, Tensor, Tensor, Tensor, Tensor, Rows, Tensor], Tensor]

# A central difference carries the rounding of two network evaluations divided by 2 eps, so the step that balances it
# against truncation grows with the unit roundoff of the forward passes.
EPS = {torch.float64: 0.005, torch.float32: 0.005, torch.float16: 0.02, torch.bfloat16: 0.05}


def derivative(kind: str = "central", eps: float | None = None, widened: float = 1.0) -> Derivative:
    """An estimator of df/dt, the total derivative of f(x_t, t, r) along x_t = alpha x + sigma z at fixed r.

    Args:
        kind: `central` is the differential derivation equation (DDE, eq. 13): two forwards, batched as one.
            `one_sided` reuses the value at t and costs one forward. `forward_mode` is exact (`torch.func.jvp`),
            needs the plain attention kernel, and does not run through DistributedDataParallel.
        eps: half the width of the finite difference in units of t; by default 0.005 for float32 forwards and 0.05
            for bfloat16 ones; `widened` multiplies it. Evaluation times are kept inside [r, t_max]: networks see no
            negative intervals.

    All run without gradient and only through ordinary forwards of the network they are given, wrapped or not.
    """
    if kind not in get_args(DerivativeKind):
        raise ValueError(f"unknown derivative {kind!r}: choose one of {', '.join(get_args(DerivativeKind))}")
    if eps is not None and not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")

    def step(dtype: torch.dtype) -> float:
        return widened * (EPS[dtype] if eps is None else eps)

    @torch.no_grad()
    def central(
        evaluate: Evaluation, transport: Transport, x: Sample, z: Sample, t: Times, r: Times, rows: Rows, value: Sample
    ) -> Sample:
        h = step(forward_dtype(evaluate, value))
        later, earlier = (t + h).clamp(max=transport.t_max), torch.maximum(t - h, r)
        times = torch.cat([later, earlier])
        points = transport.path(torch.cat([x, x]), torch.cat([z, z]), times)
        ahead, behind = evaluate(points, times, torch.cat([r, r]), torch.cat([rows, rows])).chunk(2)
        return (ahead - behind) / expand(later - earlier, ahead)

    @torch.no_grad()
    def one_sided(
        evaluate: Evaluation, transport: Transport, x: Sample, z: Sample, t: Times, r: Times, rows: Rows, value: Sample
    ) -> Sample:
        h = step(forward_dtype(evaluate, value))
        other = torch.where(t - h >= r, t - h, torch.where(t + h <= transport.t_max, t + h, r))
        there = evaluate(transport.path(x, z, other), other, r, rows)
        return (value.detach() - there) / expand(t - other, there)

    @torch.no_grad()
    def forward_mode(
        evaluate: Evaluation, transport: Transport, x: Sample, z: Sample, t: Times, r: Times, rows: Rows, value: Sample
    ) -> Sample:
        def along_path(time: Tensor) -> Tensor:
            return evaluate(transport.path(x, z, time), time, r, rows)

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode rule
            tangent: Tensor = torch.func.jvp(along_path, (t,), (torch.ones_like(t),))[1]
        return tangent

    return {"central": central, "one_sided": one_sided, "forward_mode": forward_mode}[kind]


@torch.no_grad()
def self_consistency(
    evaluate: Evaluation, transport: Transport, x: Sample, z: Sample, t: Times, r: Times, rows: Rows
) -> Sample:
    """The F that makes one step from t to r arrive where two steps of half the length do.

    Shortcut models (arXiv 2410.12557, eq. 5), on any path: with x_r the end of the two steps, F = (x_r - A x_t) / B.
    """
    middle, x_t = (t + r) / 2, transport.path(x, z, t)
    x_s = transport.transition(x_t, evaluate(x_t, t, middle, rows), t, middle)
    x_r = transport.transition(x_s, evaluate(x_s, middle, r, rows), middle, r)
    A, B = transport.transition_coefficients(t, r)
    return (x_r - expand(A, x_t) * x_t) / expand(B, x_t)


def forward_dtype(evaluate: Evaluation, value: Tensor) -> torch.dtype:
    """The coarsest precision the network computes in: autocast's, else what `evaluate` says of itself."""
    device = value.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return getattr(evaluate, "dtype", value.dtype)


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
class ModelGuidance:
    """Guidance trained into the model (eq. 17 and section 4.2), written in F space so that it serves every transport.

    Inside `t in [start, end]`: F <- w_gt F + w_cond f_ema(x_t, t, t, c) + (1 - w_gt - w_cond) f_ema(x_t, t, t, null).
    """

    w_gt: float = 1.0
    w_cond: float = 0.75
    start: float = 0.3
    end: float = 0.8

    @torch.no_grad()
    def __call__(self, F: Sample, t: Times, conditional: Sample, null: Sample) -> Sample:
        guided = self.w_gt * F + self.w_cond * conditional + (1 - self.w_gt - self.w_cond) * null
        return torch.where(expand((t >= self.start) & (t <= self.end), F).bool(), guided, F)


@dataclass
class LossRecord:
    """What one evaluation of the objective says. Only `loss` carries gradient.

    Attributes:
        loss: scalar to minimise: the weighted mean over finite samples, plus the alignment term.
        denoising: unweighted mean of `residual` over finite samples.
        residual: (batch,) unweighted loss of each sample, NaN where it is not finite.
        t, r: (batch,) the times that were used.
        derivative_norm: root mean square of df/dt over the samples with t > r; 0 without any.
        alignment: the representation-alignment term before its coefficient; 0 without one.
        nonfinite: indices of the samples that were left out.
        evaluations: network evaluations spent, in samples, those without gradient counted too.
        derivative_noise: how far `probe` is from the estimate, as a share of it; None without one.
    """

    loss: Tensor
    denoising: Tensor
    residual: Tensor
    t: Tensor
    r: Tensor
    derivative_norm: Tensor
    alignment: Tensor
    nonfinite: list[int] = field(default_factory=list)
    evaluations: int = 0
    derivative_noise: Tensor | None = None


@dataclass
class TransitionObjective:
    """Turns `(network, x, condition, generator)` into a `LossRecord` (algorithm 1).

    Args:
        transport: the path.
        estimate: df/dt, from `derivative(...)`.
        target: `identity` is eq. 10; `self_consistency` the shortcut models' target where t > r.
        diffusion_share: probability that a sample has r = t (plain diffusion).
        consistency_share: probability that a sample has r = t_min (a consistency model).
        weight, tangent: `interval_weight`'s.
        adaptive: whether to divide each sample's loss by itself (stop-gradient, + 1e-5).
        direction: whether to add the cosine distance along channels.
        guidance: model guidance in the target; needs `ema_network` and `null_condition`.
        alignment: coefficient of the representation-alignment term (REPA, arXiv 2410.06940); used when the call gets
            `features`.
        lockstep: whether processes share the network's weights (FSDP), so that all must evaluate it equally often.
        probe: a second estimate of df/dt to compare the first with, for the log alone.
    """

    transport: Transport
    estimate: Derivative = field(default_factory=derivative)
    target: TargetKind = "identity"
    diffusion_share: float = 0.5
    consistency_share: float = 0.1
    weight: str = "sqrt"
    tangent: bool = True
    adaptive: bool = True
    direction: bool = True
    guidance: ModelGuidance | None = None
    alignment: float = 1.0
    lockstep: bool = False
    probe: Derivative | None = None

    @property
    def cost(self) -> int:
        """Network evaluations, without gradient, that the target of a sample with t > r takes."""
        return TARGET_COST[self.estimate.__name__ if self.target == "identity" else self.target]

    def draw_times(self, count: int, generator: torch.Generator | None = None) -> tuple[Times, Times]:
        """(t, r) for each sample on its own, so that the shares hold at batch size 1 too."""
        return self.times(torch.randn(count, 2, generator=generator), torch.rand(count, 3, generator=generator))

    def times(
        self, normal: Float[Tensor, "batch 2"], uniform: Float[Tensor, "batch 3"], shift: Times | None = None
    ) -> tuple[Times, Times]:
        """(t, r) from standard normal and uniform draws, each sample's moved by its own `Transport.shift`."""
        first, second = (self.transport.times(normal[:, place], uniform[:, place]) for place in (0, 1))
        if shift is not None:
            first, second = self.transport.shift(first, shift), self.transport.shift(second, shift)
        t, r, category = torch.maximum(first, second), torch.minimum(first, second), uniform[:, 2]
        r = torch.where(category >= 1 - self.consistency_share, torch.full_like(r, self.transport.t_min), r)
        return t, torch.where(category < self.diffusion_share, t, r)

    def __call__(
        self, network: Any, x: Sample, condition: Any, generator: torch.Generator | None = None, **extra: Any
    ) -> LossRecord:
        """Draw times and noise from a CPU generator and evaluate; `extra` goes to `evaluate`."""
        t, r = self.draw_times(len(x), generator)
        z = torch.randn(x.shape, generator=generator)
        return self.evaluate(network, x, z.to(x), t.to(x.device), r.to(x.device), condition, **extra)

    def evaluate(
        self,
        network: Any,
        x: Sample,
        z: Sample,
        t: Float[Tensor, " images"],
        r: Float[Tensor, " images"],
        condition: Tensor,
        condition_mask: Tensor | None = None,
        null_condition: Tensor | None = None,
        null_mask: Tensor | None = None,
        ema_network: Any = None,
        features: Tensor | None = None,
        packing: Packing | None = None,
    ) -> LossRecord:
        """The loss at given draws. Times, `condition`, its mask and `null_condition` have one row a sample.

        Args:
            features: (batch, tokens, width) for the alignment term; (tokens, width) of a packed batch.
            packing: whose tokens are whose, where `x` and `z` are packed. A sample then weighs as much as it has
                tokens, so that packs and batches of one shape give the same loss.
        """
        transport, evaluations = self.transport, len(t)
        shared = SharedRows(len(t), x.device) if packing is None else packing
        own = shared.image  # which sample each row of x belongs to
        at_t, at_r = t[own.to(t.device)], r[own.to(r.device)]  # the times of each row
        valid = shared.all(x.flatten(1).isfinite().all(1))
        x = torch.where(expand(valid[own.to(x.device)], x).bool(), x, 0.0)
        x_t = transport.path(x, z, at_t)

        tokens: Tensor | None = None
        evaluate = BoundNetwork(network, transport, condition, condition_mask, packing)
        if features is None:
            f = evaluate(x_t, at_t, at_r, own)
        else:
            f, tokens = network(
                x_t, transport.network_time(t), transport.network_time(r), condition, condition_mask,
                return_features=True, packing=packing,
            )  # fmt: skip

        # df/dt multiplies B, which is 0 at t = r: those samples need no derivative
        slope, noise = torch.zeros_like(f), None
        moves = t > r
        asks = moves
        if self.lockstep and not moves.any() and self.diffusion_share < 1:
            asks = torch.arange(len(t), device=t.device) == 0  # other processes may have some, and wait
        moving, asked = ((flag[own.to(t.device)]).nonzero().squeeze(1) for flag in (moves, asks))  # rows of x
        at = (x[asked], z[asked], at_t[asked], at_r[asked])
        rows = own[asked.to(own.device)]
        if len(asked) and self.target == "identity":
            found = self.estimate(evaluate, transport, *at, rows, f[asked]).to(slope)
            slope[moving] = found[: len(moving)]
            if self.probe is not None:
                other = self.probe(evaluate, transport, *at, rows, f[asked]).to(slope)
                noise = (other - found).square().mean().sqrt() / found.square().mean().sqrt().clamp(min=1e-12)
        evaluations += self.cost * int(asks.sum())

        F = transport.prediction(x, z, at_t)
        if self.guidance is not None:
            if ema_network is None or null_condition is None:
                raise ValueError("model guidance needs ema_network and null_condition")
            with torch.no_grad():
                ema = BoundNetwork(ema_network, transport, condition, condition_mask, packing)
                conditional = ema(x_t, at_t, at_t, own)
                null = replace(ema, condition=null_condition, mask=null_mask)(x_t, at_t, at_t, own)
                F = self.guidance(F, at_t, conditional, null)
            evaluations += 2 * len(t)
        with torch.no_grad():
            target = transport.target(x, z, at_t, at_r, slope, F).to(f)
            if len(asked) and self.target == "self_consistency":
                consistent = self_consistency(evaluate, transport, *at, rows).to(f)
                target[moving] = consistent[: len(moving)]
            valid = valid & shared.all(target.flatten(1).isfinite().all(1) & f.flatten(1).isfinite().all(1))
            target = torch.where(expand(valid[own.to(x.device)], target).bool(), target, f)

        distance = (f - target).square().flatten(1).mean(1)
        if self.direction:
            distance = distance + (1 - functional.cosine_similarity(f, target, dim=1)).flatten(1).mean(1)
        residual = shared.mean(distance)
        weight = interval_weight(transport, t, r, self.weight, self.tangent)
        if self.adaptive:
            weight = weight / (residual.detach() + 1e-5)
        tall = torch.tensor(shared.lengths, device=t.device, dtype=residual.dtype) * valid
        share = tall / tall.sum().clamp(min=1)  # of each sample in the mean, by its tokens
        loss = (share * torch.where(valid, weight * residual, 0.0)).sum()
        denoising = (share * torch.where(valid, residual.detach(), 0.0)).sum()

        alignment = torch.zeros((), device=x.device)
        if tokens is not None and features is not None:
            apart = 1 - functional.cosine_similarity(tokens, features.to(tokens), dim=-1)
            apart = apart.mean(1) if packing is None else packing.mean(apart)
            alignment = (share * torch.where(valid, apart, 0.0)).sum()
            loss = loss + self.alignment * alignment
        return LossRecord(
            loss=loss,
            denoising=denoising,
            residual=torch.where(valid, residual.detach(), torch.nan),
            t=t,
            r=r,
            derivative_norm=slope[moving].square().mean().sqrt() if len(moving) else torch.zeros((), device=x.device),
            alignment=alignment.detach(),
            nonfinite=(~valid).nonzero().squeeze(1).tolist(),
            evaluations=evaluations,
            derivative_noise=noise,
        )


class SharedRows:
    """What `Packing` is to a packed batch, where every row of the batch is a sample of its own."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.image, self.lengths = torch.arange(count, device=device), [1] * count

    def mean(self, values: Tensor) -> Tensor:
        return values

    def all(self, flags: Tensor) -> Tensor:
        return flags


@dataclass(frozen=True)
class BoundNetwork:
    """An `Evaluation`: the network with its condition bound and its times translated by the transport."""

    network: Any
    transport: Transport
    condition: Tensor
    mask: Tensor | None = None
    packing: Packing | None = None

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, rows: Rows) -> Tensor:
        packed: dict[str, Packing] = {}
        if self.packing is not None:  # times come one a token, and are wanted one an image
            images, starts = self.packing.in_order(rows)
            rows, t, r = torch.tensor(images), t[starts], r[starts]
            packed = {"packing": self.packing.chosen(images)}
        times = (self.transport.network_time(t), self.transport.network_time(r))
        rows = rows.to(self.condition.device)
        mask = None if self.mask is None else self.mask[rows]
        f: Tensor = self.network(x_t, *times, self.condition[rows], mask, **packed)
        return f

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest of the weights: the answer may be float32 while the blocks are not."""
        kinds = {weight.dtype for weight in getattr(self.network, "parameters", list)()} & set(EPS)
        return max(kinds, key=EPS.__getitem__, default=torch.float32)


def residual_by_bin(
    transport: Transport, t: Times, r: Times, residual: Times, bins: int = 4
) -> tuple[Float[Tensor, "bins bins"], Int[Tensor, "bins bins"]]:
    """Sums and counts of the unweighted residual on a grid over (t, r).

    The adaptive weight makes the loss itself flat, so this is what shows learning. Rows are t, columns r, from t_min
    to t_max in equal parts of the network's time. Non-finite residuals are left out.
    """
    low, high = (transport.network_time(torch.tensor(end)) for end in (transport.t_min, transport.t_max))
    place = [((transport.network_time(time) - low) / (high - low) * bins).long().clamp(0, bins - 1) for time in (t, r)]
    finite = residual.isfinite()
    cell = (place[0] * bins + place[1])[finite]
    sums = torch.zeros(bins * bins, device=t.device).index_add_(0, cell, residual[finite].float())
    counts = torch.bincount(cell, minlength=bins * bins)
    return sums.view(bins, bins), counts.view(bins, bins)
