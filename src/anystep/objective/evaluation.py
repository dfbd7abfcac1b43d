"""How an objective sees a network: with the condition bound and times of the transport, row by row of the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from anystep.packing import Packing
from anystep.transport import Sample, Times, Transport

Rows = Int[Tensor, " rows"]
# evaluate(x_t, t, r, rows) -> f, where rows[i] says which sample x_t[i] belongs to
Evaluation = Callable[[Tensor, Tensor, Tensor, Rows], Tensor]

# A central difference carries the rounding of two network evaluations divided by 2 eps, so the step that balances it
# against truncation grows with the unit roundoff of the forward passes.
EPS = {torch.float64: 0.005, torch.float32: 0.005, torch.float16: 0.02, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class BoundNetwork:
    """An `Evaluation`: the network with its condition bound and its times translated by the transport.

    A network is any callable `network(x, t, r, condition, condition_mask=None)`; with `guidance` and `packing`, which
    have one row a sample, it is given those too.
    """

    network: Any
    transport: Transport
    condition: Tensor
    mask: Tensor | None = None
    packing: Packing | None = None
    guidance: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, rows: Rows) -> Tensor:
        told: dict[str, Any] = {}
        if self.packing is not None:  # times come one a token, and are wanted one an image
            images, starts = self.packing.in_order(rows)
            rows, t, r = torch.tensor(images), t[starts], r[starts]
            told["packing"] = self.packing.chosen(images)
        times = (self.transport.c_noise(t), self.transport.c_noise(r))
        rows = rows.to(self.condition.device)
        mask = None if self.mask is None else self.mask[rows]
        if self.guidance is not None:
            told["guidance"] = self.guidance[rows.to(self.guidance.device)]
        f: Tensor = self.network(x_t, *times, self.condition[rows], mask, **told)
        return f

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest of the weights: the answer may be float32 while the blocks are not."""
        kinds = {weight.dtype for weight in getattr(self.network, "parameters", list)()} & set(EPS)
        return max(kinds, key=EPS.__getitem__, default=torch.float32)


def forward_dtype(evaluate: Evaluation, value: Tensor) -> torch.dtype:
    """The coarsest precision the network computes in: autocast's, else what `evaluate` says of itself."""
    device = value.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return getattr(evaluate, "dtype", value.dtype)


@dataclass(frozen=True)
class PathPoints:
    """Points of a batch at which a network is to learn a transition, with what it answers there.

    Attributes:
        transport: the path that they lie on.
        x, z: the data and noise whose path they were drawn from, one row a point.
        t, r: source and target time of each.
        rows: which sample of the batch each belongs to.
        x_t: the points themselves.
        f: the network's answer f(x_t, t, r), without gradient.
        v: its velocity f(x_t, t, t), where that was found with f: in a network with branches.
        fresh: standard normal noise that x_t knows nothing of, where it was drawn.
        null: whoever's velocity is believed, with the empty condition, where there is one.
    """

    transport: Transport
    x: Sample
    z: Sample
    t: Times
    r: Times
    rows: Rows
    x_t: Sample
    f: Sample
    v: Sample | None = None
    fresh: Sample | None = None
    null: Evaluation | None = None
