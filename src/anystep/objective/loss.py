"""The training loss: times are drawn, targets made, residuals weighted, and samples that are not finite left out.

TiM, arXiv 2509.04394, algorithm 1. The parts of the loss are the other files of this package.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as functional
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anystep.objective.alignment import alignment_loss
from anystep.objective.batch import TrainingBatch, ValidMean
from anystep.objective.derivatives import Derivative
from anystep.objective.draws import NORMALS, UNIFORMS, TimeDraws
from anystep.objective.evaluation import BoundNetwork, TransitionPoints
from anystep.objective.guidance import GuidanceCondition, ModelGuidance
from anystep.objective.targets import Identity, SelfEvaluation, Target
from anystep.objective.weights import Weighting, c_noise_bin
from anystep.transport import Sample, Times, Transport, expand

DRAWN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever this process makes tensors of by default


@dataclass
class LossRecord:
    """The loss of one batch and what is logged with it. Only `loss` carries gradient.

    Attributes:
        loss: scalar to minimise: the weighted mean over finite samples, plus the alignment loss.
        denoising: unweighted mean of `residual` over finite samples.
        residual: (batch,) unweighted loss of each sample, NaN where it is not finite.
        weighted_residual: (batch,) the same times the weight that the target gives each point, as `Weighting` gets it.
        t, r: (batch,) the times that were used.
        derivative_norm: root mean square of df/dt over the samples with t > r; 0 without any.
        alignment: the representation-alignment loss before its coefficient; 0 without one.
        evaluations: network evaluations spent, in samples, those without gradient counted too; a branch that is
            evaluated beside another counts as the part of the network that it is.
        derivative_noise: the distance between df/dt and the estimate of `probe`, relative to df/dt; None without one.
    """

    loss: Tensor
    denoising: Tensor
    residual: Tensor
    weighted_residual: Tensor
    t: Tensor
    r: Tensor
    derivative_norm: Tensor
    alignment: Tensor
    evaluations: int | float = 0
    derivative_noise: Tensor | None = None

    @property
    def nonfinite(self) -> list[int]:
        """Indices of the samples that were left out; asking for them waits for the device."""
        return self.residual.isnan().nonzero().squeeze(1).tolist()


@dataclass(frozen=True)
class BranchVelocity:
    """How a network with branches learns its velocity: v(x_t, t) towards F on all samples, also where t > r.

    Args:
        weight: loss weight of the velocity where t > r.
        cost: operations of its branch, relative to an evaluation of the whole network.
    """

    weight: float = 1.0
    cost: float = 1 / 3


@dataclass(frozen=True)
class RowTargets:
    """What f should be in each row of a batch, and what that took.

    Attributes:
        value: F where t = r, the target's answer elsewhere.
        weight: (rows,) the weight that the target gives each row; None is 1.
        derivative_norm, derivative_noise: as in `LossRecord`.
        evaluations: network evaluations of the target, in samples.
    """

    value: Sample
    derivative_norm: Tensor
    weight: Times | None = None
    derivative_noise: Tensor | None = None
    evaluations: int = 0


@dataclass(frozen=True)
class TransitionObjective:
    """A training objective of transition models (TiM, arXiv 2509.04394, algorithm 1).

    Args:
        transport: what relates data, noise and x_t.
        draws: which pairs of times are trained on.
        target: what the network should answer where t > r; it is F where t = r.
        weighting: the weight of each sample. What it has learned so far is in its `normaliser`, which is to be updated
            with `weighted_residual` after each step.
        direction: whether the cosine distance along channels is added to the squared distance.
        guidance: guidance trained into the target, of one scale or of any scale that the network is given; it needs an
            `ema_network` and a `null_condition`.
        alignment: coefficient of the representation-alignment loss (REPA), where a batch has `features`.
        ema_teacher: whether targets take velocities from `ema_network` instead of the network that is trained.
        synchronised_forwards: whether every process must evaluate the network equally often, because processes share
            its weights (FSDP).
        probe: a second estimate of df/dt, which that of an `Identity` target is compared with for the log.
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
    synchronised_forwards: bool = False
    probe: Derivative | None = None
    velocity: BranchVelocity | None = None

    # --- drawing --------------------------------------------------------------------------------------------------

    def draw_times(self, count: int, generator: torch.Generator | None = None) -> tuple[Times, Times]:
        """(t, r) for each of `count` samples, from a CPU generator."""
        normal = torch.randn(count, NORMALS, generator=generator, **DRAWN)
        return self.times(normal, torch.rand(count, UNIFORMS, generator=generator, **DRAWN))

    def times(
        self, normal: Float[Tensor, "batch 3"], uniform: Float[Tensor, "batch 6"], shift: Times | None = None
    ) -> tuple[Times, Times]:
        """(t, r) from standard normal and uniform draws, each sample's moved by its own `Transport.shift`."""
        return self.draws(self.transport, normal, uniform, shift)

    def draw_batch(
        self, x: Sample, condition: Tensor, generator: torch.Generator | None = None, **fields: Any
    ) -> TrainingBatch:
        """A batch with times and noise from a CPU generator; `fields` are further fields of `TrainingBatch`."""
        t, r = self.draw_times(len(x), generator)
        z = torch.randn(x.shape, generator=generator, **DRAWN)
        if isinstance(self.guidance, GuidanceCondition) and "guidance" not in fields:
            fields["guidance"] = self.guidance.scales(torch.rand(len(x), generator=generator, **DRAWN)).to(x.device)
        if isinstance(self.target, SelfEvaluation) and "fresh_noise" not in fields:
            fields["fresh_noise"] = torch.randn(x.shape, generator=generator, **DRAWN).to(x)
        return TrainingBatch(x, z.to(x), t.to(x.device), r.to(x.device), condition, **fields)

    # --- the loss -------------------------------------------------------------------------------------------------

    def evaluate(
        self, network: Any, batch: TrainingBatch, ema_network: Any = None, progress: float = 1.0, base: Any = None
    ) -> LossRecord:
        """The loss of a network on a batch.

        Args:
            ema_network: the moving average of the network, for guidance and for an EMA teacher.
            progress: the part of the training that is done, from 0 to 1, for targets that change with it.
            base: a frozen network whose velocity stands for that of the data, and which guidance in the target asks in
                place of the average.
        """
        batch, valid = batch.without_nonfinite()
        student = batch.bind(network, self.transport)
        ema = None if ema_network is None else batch.bind(ema_network, self.transport)
        points, projected = self._forward(student, batch)
        followed = None if base is None else batch.bind(base, self.transport)
        points, guided = self._guide(self._follow(points, followed), batch, followed or ema, base is not None)
        targets = self._targets(points, batch, student, ema, progress)
        learned = (targets.value, points.f) if points.v is None else (targets.value, points.f, points.F, points.v)
        for each in learned:
            valid = valid & batch.layout.all(each.flatten(1).isfinite().all(1))
        evaluations: int | float = len(batch.t) * (1 + (base is not None)) + 2 * guided + targets.evaluations
        if self.velocity is not None:
            evaluations += self.velocity.cost * int((batch.t > batch.r).sum())
        return self._record(points, projected, targets, batch, valid, evaluations)

    def _record(
        self,
        points: TransitionPoints,
        projected: Tensor | None,
        targets: RowTargets,
        batch: TrainingBatch,
        valid: Bool[Tensor, " samples"],
        evaluations: int | float,
    ) -> LossRecord:
        """The weighted mean over the valid samples of all terms of the loss."""
        f, v, finite = points.f, points.v, expand(batch.by_row(valid), points.f).bool()
        distance = self._distance(f, torch.where(finite, targets.value, f.detach()))
        residual = weighted = batch.layout.mean(distance)
        if targets.weight is not None:
            weighted = batch.layout.mean(distance * targets.weight.to(distance))
        mean = ValidMean(batch.layout, valid, residual.dtype)
        loss = mean(self.weighting(self.transport, batch.t, batch.r, weighted))
        if v is not None and self.velocity is not None:  # where t = r the velocity is f, whose loss is there already
            distance = self._distance(v, torch.where(finite, points.F.to(v), v.detach()))
            velocity_loss = self.weighting(self.transport, batch.t, batch.t, batch.layout.mean(distance))
            loss = loss + self.velocity.weight * mean(torch.where(batch.t > batch.r, velocity_loss, 0.0))
        alignment = torch.zeros((), dtype=torch.float32, device=f.device)
        if projected is not None and batch.features is not None:
            alignment = mean(alignment_loss(projected, batch.features, batch.packing))
            loss = loss + self.alignment * alignment
        return LossRecord(
            loss=loss,
            denoising=mean(residual.detach()),
            residual=torch.where(valid, residual.detach(), torch.nan),
            weighted_residual=torch.where(valid, weighted.detach(), torch.nan),
            t=batch.t,
            r=batch.r,
            derivative_norm=targets.derivative_norm,
            alignment=alignment.detach(),
            evaluations=evaluations,
            derivative_noise=targets.derivative_noise,
        )

    def _forward(self, student: BoundNetwork, batch: TrainingBatch) -> tuple[TransitionPoints, Tensor | None]:
        """The forward pass with gradient: points of the whole batch, and projected features where they are aligned."""
        index, t, r = batch.layout.sample_index, batch.by_row(batch.t), batch.by_row(batch.r)
        x_t = self.transport.interpolate(batch.x, batch.z, t)
        F = self.transport.target(batch.x, batch.z, t)
        f, projected, v = student.outputs(
            x_t, t, r, index, features=batch.features is not None, velocity=self.velocity is not None
        )
        points = TransitionPoints(self.transport, batch.x, batch.z, F, t, r, index, x_t, f, v, batch.fresh_noise)
        return points, projected

    @torch.no_grad()
    def _follow(self, points: TransitionPoints, base: BoundNetwork | None) -> TransitionPoints:
        """The points on the trajectory of a base: F is its velocity, x and z the data and noise that it stands for."""
        if base is None:
            return points
        F = base(points.x_t, points.t, points.t, points.sample_index).to(points.F)
        x, z = self.transport.decompose(points.x_t, F, points.t)
        return replace(points, x=x, z=z, F=F)

    @torch.no_grad()
    def _guide(
        self, points: TransitionPoints, batch: TrainingBatch, ema: BoundNetwork | None, followed: bool = False
    ) -> tuple[TransitionPoints, int]:
        """The points with a guided F, and the number of samples that guidance evaluated the network on.

        Args:
            followed: whether F is the velocity of a base, which then is exact along its own trajectory.
        """
        if self.guidance is None:
            return points, 0
        null = None if ema is None else batch.bind_null(ema.network, self.transport)
        if ema is None or null is None:
            raise ValueError("guidance in the target needs ema_network and null_condition")
        needed = self._synchronised(self.guidance.needs_evaluation(batch.t, batch.guidance))
        rows = batch.by_row(needed).nonzero().squeeze(1)
        if not len(rows):
            return points, 0
        at = points.select(rows)
        scale = None if batch.guidance is None else batch.by_row(batch.guidance)[rows]
        conditional, unconditional = (network(at.x_t, at.t, at.t, at.sample_index) for network in (ema, null))
        x, z, F = points.x.clone(), points.z.clone(), points.F.clone()
        F[rows] = self.guidance(at.F, at.t, conditional, unconditional, scale).to(F)
        if isinstance(self.guidance, GuidanceCondition) or followed:
            # the target is exact along the trajectory of the data and noise that the guided F stands for
            x[rows], z[rows] = self.transport.decompose(at.x_t, F[rows], at.t)
        return replace(points, x=x, z=z, F=F), int(needed.sum())

    @torch.no_grad()
    def _targets(
        self,
        points: TransitionPoints,
        batch: TrainingBatch,
        student: BoundNetwork,
        ema: BoundNetwork | None,
        progress: float,
    ) -> RowTargets:
        """What f should be: F where t = r, since B is 0 there, and what `target` makes of the points elsewhere."""
        needed = has_interval = batch.t > batch.r
        if self.draws.diffusion_share < 1:
            needed = self._synchronised(has_interval)
        rows = batch.by_row(needed).nonzero().squeeze(1)
        diffusion = RowTargets(points.F.to(points.f), torch.zeros((), dtype=torch.float32, device=points.f.device))
        if not len(rows):
            return diffusion
        if self.ema_teacher and ema is None:
            raise ValueError("an EMA teacher needs ema_network")
        teacher, v = (ema, None) if self.ema_teacher and ema is not None else (student, points.v)
        at = replace(points, v=v, null=batch.bind_null(teacher.network, self.transport)).select(rows)
        made = self.target(at, student, teacher, progress)
        noise = None
        if made.slope is not None and self.probe is not None and isinstance(self.target, Identity):
            probed = replace(self.target, estimate=self.probe)(at, student, teacher, progress).slope
            assert probed is not None
            noise = rms(probed - made.slope) / rms(made.slope).clamp(min=1e-12)
        evaluations = target_cost(self.target, self.velocity, self.ema_teacher) * int(needed.sum())
        if not has_interval.any():  # the network was evaluated for the sake of other processes alone
            return replace(diffusion, evaluations=evaluations)
        weight = made.weight
        if weight is not None:
            weight = torch.ones_like(points.t).index_put((rows,), weight)
        return RowTargets(
            value=diffusion.value.index_put((rows,), made.value.to(points.f)),
            derivative_norm=diffusion.derivative_norm if made.slope is None else rms(made.slope),
            weight=weight,
            derivative_noise=noise,
            evaluations=evaluations,
        )

    def _synchronised(self, needed: Bool[Tensor, " samples"]) -> Bool[Tensor, " samples"]:
        """The samples that the network is evaluated on: the first one where none needs it and other processes wait."""
        if self.synchronised_forwards and not needed.any():
            return torch.arange(len(needed), device=needed.device) == 0
        return needed

    def _distance(self, f: Sample, target: Sample) -> Times:
        """The mean squared distance of each row, with the cosine distance along channels where `direction` is set."""
        distance = (f - target).square().flatten(1).mean(1)
        if self.direction:
            distance = distance + (1 - functional.cosine_similarity(f, target, dim=1)).flatten(1).mean(1)
        return distance


def target_cost(target: Target, velocity: BranchVelocity | None, ema_teacher: bool) -> int:
    """Network evaluations without gradient that the target of a sample takes; its velocity may be known already."""
    known = velocity is not None and not ema_teacher and isinstance(target, Identity) and target.needs_velocity
    return target.cost - known


def rms(values: Tensor) -> Tensor:
    """Root mean square."""
    return values.square().mean().sqrt()


def residual_by_bin(
    transport: Transport, t: Times, r: Times, residual: Times, bins: int = 4
) -> tuple[Float[Tensor, "bins bins"], Int[Tensor, "bins bins"]]:
    """Sums and counts of the unweighted residual on a grid over (t, r).

    The adaptive weight makes the loss itself flat, so this is what shows learning. Rows are t, columns r, from t_min
    to t_max in equal parts of c_noise. Non-finite residuals are left out.
    """
    finite = residual.isfinite()
    cell = (c_noise_bin(transport, t, bins) * bins + c_noise_bin(transport, r, bins))[finite]
    sums = torch.zeros(bins * bins, dtype=torch.float32, device=t.device).index_add_(0, cell, residual[finite].float())
    counts = torch.bincount(cell, minlength=bins * bins)
    return sums.view(bins, bins), counts.view(bins, bins)
