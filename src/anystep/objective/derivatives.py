"""Estimators of df/dt, the total derivative of a network along a path at fixed r (TiM, arXiv 2509.04394, eq. 13)."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anystep.objective.evaluation import EPS, Evaluation, Rows, forward_dtype
from anystep.transport import Sample, Times, Transport, expand

DerivativeKind = Literal["central", "forward_mode", "one_sided"]
# estimate(evaluate, transport, x, z, t, r, rows, value) -> df/dt, where value is f(x_t, t, r)
Derivative = Callable[[Evaluation, Transport, Tensor, Tensor, Tensor, Tensor, Rows, Tensor], Tensor]
# network evaluations of a sample, without gradient, beside f(x_t, t, r) itself
DERIVATIVE_COST = {"central": 2, "one_sided": 1, "forward_mode": 2}


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
        points = transport.interpolate(torch.cat([x, x]), torch.cat([z, z]), times)
        ahead, behind = evaluate(points, times, torch.cat([r, r]), torch.cat([rows, rows])).chunk(2)
        return (ahead - behind) / expand(later - earlier, ahead)

    @torch.no_grad()
    def one_sided(
        evaluate: Evaluation, transport: Transport, x: Sample, z: Sample, t: Times, r: Times, rows: Rows, value: Sample
    ) -> Sample:
        h = step(forward_dtype(evaluate, value))
        other = torch.where(t - h >= r, t - h, torch.where(t + h <= transport.t_max, t + h, r))
        there = evaluate(transport.interpolate(x, z, other), other, r, rows)
        return (value.detach() - there) / expand(t - other, there)

    @torch.no_grad()
    def forward_mode(
        evaluate: Evaluation, transport: Transport, x: Sample, z: Sample, t: Times, r: Times, rows: Rows, value: Sample
    ) -> Sample:
        def along_path(time: Tensor) -> Tensor:
            return evaluate(transport.interpolate(x, z, time), time, r, rows)

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode rule
            tangent: Tensor = torch.func.jvp(along_path, (t,), (torch.ones_like(t),))[1]
        return tangent

    return {"central": central, "one_sided": one_sided, "forward_mode": forward_mode}[kind]
