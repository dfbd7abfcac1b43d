"""The training loss: pairs of times are drawn, targets made, residuals weighted, and what is not finite left out.

TiM, arXiv 2509.04394, algorithm 1; its parts are the other files of this package.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anystep.objective.derivatives import Derivative
from anystep.objective.draws import NORMALS, UNIFORMS, TimeDraws
from anystep.objective.evaluation import BoundNetwork, PathPoints
from anystep.objective.guidance import GuidanceCondition, ModelGuidance
from anystep.objective.targets import Identity, SelfEvaluation, Target, TargetValue
from anystep.objective.weights import Weighting, network_bin
from anystep.packing import Packing
from anystep.transport import Sample, Times, Transport, expand


@dataclass
class LossRecord:
    """What one evaluation of the objective says. Only `loss` carries gradient.

    Attributes:
        loss: scalar to minimise: the weighted mean over finite samples, plus the alignment term.
        denoising: unweighted mean of `residual` over finite samples.
        residual: (batch,) unweighted loss of each sample, NaN where it is not finite.
        weighed: (batch,) the same times what the target says that it counts: what `Weighting` was given.
        t, r: (batch,) the times that were used.
        derivative_norm: root mean square of df/dt over the samples with t > r; 0 without any.
        alignment: the representation-alignment term before its coefficient; 0 without one.
        nonfinite: indices of the samples that were left out.
        evaluations: network evaluations spent, in samples, those without gradient counted too; a branch that is
            evaluated beside another counts as the share of the network that it is.
        derivative_noise: how far `probe` is from the estimate, as a share of it; None without one.
    """

    loss: Tensor
    denoising: Tensor
    residual: Tensor
    weighed: Tensor
    t: Tensor
    r: Tensor
    derivative_norm: Tensor
    alignment: Tensor
    nonfinite: list[int] = field(default_factory=list)
    evaluations: int | float = 0
    derivative_noise: Tensor | None = None


@dataclass(frozen=True)
class BranchVelocity:
    """The velocity of a network with branches is learned on all samples: v(x_t, t) towards F where t > r too.

    Args:
        weight: of its loss there.
        cost: of its branch, as a share of an evaluation of the network.
    """

    weight: float = 1.0
    cost: float = 1 / 3


class PathPair(NamedTuple):
    """Data and noise, one row each, and the F that stands for them at their time."""

    x: Sample
    z: Sample
    F: Sample


@dataclass
class TransitionObjective:
    """Turns `(network, x, condition, generator)` into a `LossRecord` (algorithm 1).

    Args:
        transport: the path.
        draws: which pairs of times are trained on.
        target: what the network should answer where t > r; it is F where t = r.
        weighting: what each sample counts. What it has learned so far is in its `normaliser`, which wants to be given
            `weighed` of each step.
        direction: whether to add the cosine distance along channels to the squared one.
        guidance: in the target, of one kind or of any that the network is told; needs `ema_network` and
            `null_condition`.
        alignment: coefficient of the representation-alignment term (REPA, arXiv 2410.06940); used when the call gets
            `features`.
        ema_teacher: whether targets take velocities from `ema_network` instead of the network that is trained.
        lockstep: whether processes share the network's weights (FSDP), so that all must evaluate it equally often.
        probe: a second estimate of df/dt to compare that of an `Identity` target with, for the log alone.
        velocity: how a network with branches learns the velocity where t > r; None where it has none, or does not.
    """

    transport: Transport
    draws: TimeDraws = field(default_factory=TimeDraws)
    target: Target = field(default_factory=Identity)
    weighting: Weighting = field(default_factory=Weighting)
    direction: bool = True
    guidance: ModelGuidance | GuidanceCondition | None = None
    alignment: float = 1.0
    ema_teacher: bool = False
    lockstep: bool = False
    probe: Derivative | None = None
    velocity: BranchVelocity | None = None

    def draw_times(self, count: int, generator: torch.Generator | None = None) -> tuple[Times, Times]:
        """(t, r) for each of `count` samples, from a CPU generator."""
        normal = torch.randn(count, NORMALS, generator=generator)
        return self.draws(self.transport, normal, torch.rand(count, UNIFORMS, generator=generator))

    def times(
        self, normal: Float[Tensor, "batch 3"], uniform: Float[Tensor, "batch 5"], shift: Times | None = None
    ) -> tuple[Times, Times]:
        """(t, r) from standard normal and uniform draws, each sample's moved by its own `Transport.shift`."""
        return self.draws(self.transport, normal, uniform, shift)

    def __call__(
        self, network: Any, x: Sample, condition: Any, generator: torch.Generator | None = None, **extra: Any
    ) -> LossRecord:
        """Draw times and noise from a CPU generator and evaluate; `extra` goes to `evaluate`."""
        t, r = self.draw_times(len(x), generator)
        z = torch.randn(x.shape, generator=generator)
        if isinstance(self.guidance, GuidanceCondition) and "guidance" not in extra:
            extra["guidance"] = self.guidance.scales(torch.rand(len(x), generator=generator)).to(x.device)
        if isinstance(self.target, SelfEvaluation) and "fresh" not in extra:
            extra["fresh"] = torch.randn(x.shape, generator=generator).to(x)
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
        progress: float = 1.0,
        guidance: Float[Tensor, " images"] | None = None,
        fresh: Sample | None = None,
    ) -> LossRecord:
        """The loss at given draws. Times, `condition`, its mask and `null_condition` have one row a sample.

        Args:
            guidance: the scale that the network is told of each sample, for a `GuidanceCondition`; 1 where the
                condition is the empty one.
            features: (batch, tokens, width) for the alignment term; (tokens, width) of a packed batch.
            packing: whose tokens are whose, where `x` and `z` are packed. A sample then weighs as much as it has
                tokens, so that packs and batches of one shape give the same loss.
            progress: share of the training that is done, for targets that change with it.
            fresh: noise beside `z`, for a `SelfEvaluation`.
        """
        transport = self.transport
        shared = SharedRows(len(t), x.device) if packing is None else packing
        own = shared.image  # which sample each row of x belongs to
        at_t, at_r = t[own.to(t.device)], r[own.to(r.device)]  # the times of each row
        valid = shared.all(x.flatten(1).isfinite().all(1))
        x = torch.where(expand(valid[own.to(x.device)], x).bool(), x, 0.0)
        x_t = transport.interpolate(x, z, at_t)

        evaluate = BoundNetwork(network, transport, condition, condition_mask, packing, guidance)
        tokens: Tensor | None = None
        v: Tensor | None = None
        if features is None and self.velocity is None:
            f = evaluate(x_t, at_t, at_r, own)
        else:
            told: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
            asked_too = {"return_features": features is not None, "return_velocity": self.velocity is not None}
            f, *found = network(
                x_t, transport.c_noise(t), transport.c_noise(r), condition, condition_mask,
                packing=packing, **{name: True for name, wanted in asked_too.items() if wanted}, **told,
            )  # fmt: skip
            tokens = found[0] if features is not None else None
            v = found[-1] if self.velocity is not None else None
        ema = None if ema_network is None else replace(evaluate, network=ema_network)
        unguided = None if guidance is None else torch.ones_like(guidance)
        null = None
        if null_condition is not None:
            believed = ema if self.ema_teacher and ema is not None else evaluate
            null = replace(believed, condition=null_condition, mask=null_mask, guidance=unguided)
        pair, guided = PathPair(x, z, transport.target(x, z, at_t)), 0
        if self.guidance is not None:
            if ema is None or null is None:
                raise ValueError("guidance in the target needs ema_network and null_condition")
            asked = self._together(self.guidance.asks(t, guidance))
            guided = int(asked.sum())
            pair = self._guided(pair, x_t, t, guidance, own, asked, ema, replace(null, network=ema_network))
        x, z, F = pair
        with torch.no_grad():
            target = F.to(f)
            moving = (at_t > at_r).nonzero().squeeze(1)
            asked = t > r  # where t = r, B is 0 and the target F
            asked = self._together(asked) if self.draws.diffusion_share < 1 else asked
            rows = asked[own.to(t.device)].nonzero().squeeze(1)
            made, noise = self._learned(
                PathPoints(transport, x[rows], z[rows], at_t[rows], at_r[rows], own[rows.to(own.device)], x_t[rows],
                           f[rows].detach(), None if v is None or self.ema_teacher else v[rows].detach(),
                           None if fresh is None else fresh[rows], null),
                evaluate, ema, F[rows], progress,
            )  # fmt: skip
            if len(moving):  # else what was asked for was asked for the sake of other processes
                target = target.index_put((moving,), made.value.to(f))  # F stays what it is
            for each in (target, f) if v is None else (target, f, F, v):
                valid = valid & shared.all(each.flatten(1).isfinite().all(1))
            finite = expand(valid[own.to(x.device)], target).bool()
            target = torch.where(finite, target, f)

        distance = self._distance(f, target)
        residual = shared.mean(distance)
        unweighted = residual.detach()
        if made.weight is not None and len(moving):
            factor = torch.ones_like(distance).index_put((moving,), made.weight.to(distance))
            residual = shared.mean(distance * factor)
        weighted = self.weighting(transport, t, r, residual)
        tall = torch.tensor(shared.lengths, device=t.device, dtype=residual.dtype) * valid
        share = tall / tall.sum().clamp(min=1)  # of each sample in the mean, by its tokens
        loss = (share * torch.where(valid, weighted, 0.0)).sum()
        if v is not None and self.velocity is not None:  # where t = r it is f, and counted
            apart = shared.mean(self._distance(v, torch.where(finite, F.to(v), v.detach())))
            apart = self.weighting(transport, t, t, apart)
            loss = loss + self.velocity.weight * (share * torch.where(valid & (t > r), apart, 0.0)).sum()
        alignment = torch.zeros((), device=x.device)
        if tokens is not None and features is not None:
            apart = 1 - functional.cosine_similarity(tokens, features.to(tokens), dim=-1)
            apart = apart.mean(1) if packing is None else packing.mean(apart)
            alignment = (share * torch.where(valid, apart, 0.0)).sum()
            loss = loss + self.alignment * alignment
        return LossRecord(
            loss=loss,
            denoising=(share * torch.where(valid, unweighted, 0.0)).sum(),
            residual=torch.where(valid, unweighted, torch.nan),
            weighed=torch.where(valid, residual.detach(), torch.nan),
            t=t,
            r=r,
            derivative_norm=rms(made.slope)
            if made.slope is not None and len(moving)
            else torch.zeros((), device=x.device),
            alignment=alignment.detach(),
            nonfinite=(~valid).nonzero().squeeze(1).tolist(),
            evaluations=len(t)
            + 2 * guided
            + target_cost(self.target, self.velocity, self.ema_teacher) * int(asked.sum())
            + (0 if self.velocity is None else self.velocity.cost * int((t > r).sum())),
            derivative_noise=noise,
        )

    def _distance(self, f: Sample, target: Sample) -> Tensor:
        """Mean squared distance of each row, and by the direction along channels where it counts."""
        distance = (f - target).square().flatten(1).mean(1)
        if self.direction:
            distance = distance + (1 - functional.cosine_similarity(f, target, dim=1)).flatten(1).mean(1)
        return distance

    @torch.no_grad()
    def _guided(
        self,
        pair: PathPair,
        x_t: Sample,
        t: Float[Tensor, " images"],
        scale: Float[Tensor, " images"] | None,
        own: Tensor,
        asked: Bool[Tensor, " images"],
        conditional: BoundNetwork,
        null: BoundNetwork,
    ) -> PathPair:
        """The pair with a guided F where the networks are asked for it."""
        rows = asked[own.to(t.device)].nonzero().squeeze(1)
        if self.guidance is None or not len(rows):
            return pair
        x, z, F = (each.clone() for each in pair)
        image = own.to(t.device)[rows]
        at = x_t[rows], t[image], t[image], own[rows.to(own.device)]
        told = None if scale is None else scale[image]
        F[rows] = self.guidance(F[rows], t[image], conditional(*at), null(*at), told).to(F)
        if isinstance(self.guidance, GuidanceCondition):
            # what f is to be is exact along the path of the pair that F now stands for
            x[rows], z[rows] = self.transport.decompose(x_t[rows], F[rows], t[image])
        return PathPair(x, z, F)

    def _together(self, asked: Bool[Tensor, " images"]) -> Bool[Tensor, " images"]:
        """Samples that networks are asked for. Where processes wait for each other, one that has none asks for its
        first, for nothing.
        """
        if self.lockstep and not asked.any():
            asked = torch.arange(len(asked), device=asked.device) == 0
        return asked

    def _learned(
        self, at: PathPoints, evaluate: BoundNetwork, ema: BoundNetwork | None, F: Sample, progress: float
    ) -> tuple[TargetValue, Tensor | None]:
        """The target at these points, and how far the probe's derivative is from that in it."""
        if not len(at.t):
            return TargetValue(F), None
        if self.ema_teacher and ema is None:
            raise ValueError("an EMA teacher needs ema_network")
        teacher = ema if self.ema_teacher and ema is not None else evaluate
        made = self.target(at, evaluate, teacher, F, progress)
        if self.probe is None or not isinstance(self.target, Identity) or made.slope is None:
            return made, None
        other = replace(self.target, estimate=self.probe)(at, evaluate, teacher, F, progress).slope
        assert other is not None
        return made, rms(other - made.slope) / rms(made.slope).clamp(min=1e-12)


def target_cost(target: Target, velocity: BranchVelocity | None, ema_teacher: bool) -> int:
    """Evaluations without gradient that the target of a sample takes: its own velocity may be known already."""
    known = velocity is not None and not ema_teacher and isinstance(target, Identity) and target.asks_velocity
    return target.cost - known


def rms(values: Tensor) -> Tensor:
    """Root mean square."""
    return values.square().mean().sqrt()


class SharedRows:
    """What `Packing` is to a packed batch, where every row of the batch is a sample of its own."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.image, self.lengths = torch.arange(count, device=device), [1] * count

    def mean(self, values: Tensor) -> Tensor:
        return values

    def all(self, flags: Tensor) -> Tensor:
        return flags


def residual_by_bin(
    transport: Transport, t: Times, r: Times, residual: Times, bins: int = 4
) -> tuple[Float[Tensor, "bins bins"], Int[Tensor, "bins bins"]]:
    """Sums and counts of the unweighted residual on a grid over (t, r).

    The adaptive weight makes the loss itself flat, so this is what shows learning. Rows are t, columns r, from t_min
    to t_max in equal parts of the network's time. Non-finite residuals are left out.
    """
    finite = residual.isfinite()
    cell = (network_bin(transport, t, bins) * bins + network_bin(transport, r, bins))[finite]
    sums = torch.zeros(bins * bins, device=t.device).index_add_(0, cell, residual[finite].float())
    counts = torch.bincount(cell, minlength=bins * bins)
    return sums.view(bins, bins), counts.view(bins, bins)
