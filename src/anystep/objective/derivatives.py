"""Estimators of df/dt, the total derivative of a network along x_t at fixed r (TiM, arXiv 2509.04394, eq. 13)."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anystep.objective.evaluation import EPS, Evaluation, TransitionPoints, forward_dtype
from anystep.transport import Sample, Times, Transport, expand

DerivativeKind = Literal["central", "forward_mode", "one_sided"]
# estimate(evaluate, at) -> df/dt at these points, along the trajectory of their x and z
Derivative = Callable[[Evaluation, TransitionPoints], Tensor]
# network evaluations of a sample, without gradient, beside f(x_t, t, r) itself
DERIVATIVE_COST = {"central": 2, "one_sided": 1, "forward_mode": 2}
TURN = 0.3  # radians that a time embedding's wave of frequency 1 may turn within a step of a finite difference


def finest_step(transport: Transport, t: Times) -> Times:
    """The longest step at each t over which embeddings of c_noise can be differentiated: for `vp` far below `EPS`."""
    return TURN / torch.func.jvp(transport.c_noise, (t,), (torch.ones_like(t),))[1].abs()


def derivative(kind: str = "central", eps: float | None = None, widened: float = 1.0) -> Derivative:
    """An estimator of df/dt, the total derivative of f(x_t, t, r) along x_t = alpha x + sigma z at fixed x, z and r.

    Args:
        kind: `central` is the differential derivation equation (DDE, eq. 13): two forwards, batched as one.
            `one_sided` reuses the value at t and costs one forward. `forward_mode` is exact (`torch.func.jvp`),
            needs the plain attention kernel, and does not run through DistributedDataParallel.
        eps: half the width of the finite difference in units of t; by default 0.005 for float32 forwards and 0.05
            for bfloat16 ones, or less where c_noise changes faster than t; `widened` multiplies it. Evaluation times
            are kept inside [r, t_max]: networks see no negative intervals.

    All run without gradient and only through ordinary forwards of the network they are given, wrapped or not.
    """
    if kind not in get_args(DerivativeKind):
        raise ValueError(f"unknown derivative {kind!r}: choose one of {', '.join(get_args(DerivativeKind))}")
    if eps is not None and not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")

    def step(evaluate: Evaluation, at: TransitionPoints) -> Times:
        if eps is not None:
            return torch.full_like(at.t, widened * eps)
        return widened * finest_step(at.transport, at.t).clamp(max=EPS[forward_dtype(evaluate, at.f)])

    @torch.no_grad()
    def central(evaluate: Evaluation, at: TransitionPoints) -> Sample:
        h = step(evaluate, at)
        later, earlier = (at.t + h).clamp(max=at.transport.t_max), torch.maximum(at.t - h, at.r)
        times = torch.cat([later, earlier])
        x, z, r, sample_index = (torch.cat([each, each]) for each in (at.x, at.z, at.r, at.sample_index))
        ahead, behind = evaluate(at.transport.interpolate(x, z, times), times, r, sample_index).chunk(2)
        return (ahead - behind) / expand(later - earlier, ahead)

    @torch.no_grad()
    def one_sided(evaluate: Evaluation, at: TransitionPoints) -> Sample:
        h = step(evaluate, at)
        below, above = at.t - h, at.t + h
        other = torch.where(below >= at.r, below, torch.where(above <= at.transport.t_max, above, at.r))
        there = evaluate(at.transport.interpolate(at.x, at.z, other), other, at.r, at.sample_index)
        return (at.f.detach() - there) / expand(at.t - other, there)

    @torch.no_grad()
    def forward_mode(evaluate: Evaluation, at: TransitionPoints) -> Sample:
        def along_trajectory(time: Tensor) -> Tensor:
            return evaluate(at.transport.interpolate(at.x, at.z, time), time, at.r, at.sample_index)

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode rule
            tangent: Tensor = torch.func.jvp(along_trajectory, (at.t,), (torch.ones_like(at.t),))[1]
        return tangent

    return {"central": central, "one_sided": one_sided, "forward_mode": forward_mode}[kind]
