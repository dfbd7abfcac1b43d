"""How an objective sees a network: with its condition bound and times of the transport, row by row of the batch."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from anystep.packing import Packing
from anystep.transport import Sample, Times, Transport

SampleIndex = Int[Tensor, " rows"]
# evaluate(x_t, t, r, sample_index) -> f, where sample_index[i] says which sample the row x_t[i] belongs to
Evaluation = Callable[[Tensor, Tensor, Tensor, SampleIndex], Tensor]

# A central difference carries the rounding of two network evaluations divided by 2 eps, so the step that balances it
# against truncation grows with the unit roundoff of the forward passes.
EPS = {torch.float64: 0.005, torch.float32: 0.005, torch.float16: 0.02, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class BoundNetwork:
    """An `Evaluation`: a network with its condition bound, which takes the times of a transport.

    A network is any callable `network(x, t, r, condition, condition_mask=None)`. `guidance` and `packing`, which have
    one entry a sample, are passed on where they are given.
    """

    network: Any
    transport: Transport
    condition: Tensor
    condition_mask: Tensor | None = None
    packing: Packing | None = None
    guidance: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, sample_index: SampleIndex) -> Tensor:
        return self.outputs(x_t, t, r, sample_index)[0]

    def outputs(
        self, x_t: Tensor, t: Tensor, r: Tensor, sample_index: SampleIndex, features: bool = False,
        velocity: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """f(x_t, t, r), and where they are asked for the network's projected features and its velocity."""
        options: dict[str, Any] = {}
        if self.packing is not None:  # times come one a token, and are wanted one an image
            images, starts = self.packing.in_order(sample_index)
            sample_index, t, r = torch.tensor(images, device="cpu"), t[starts], r[starts]
            options["packing"] = self.packing.chosen(images)
        times = (self.transport.c_noise(t), self.transport.c_noise(r))
        sample_index = sample_index.to(self.condition.device)
        mask = None if self.condition_mask is None else self.condition_mask[sample_index]
        if self.guidance is not None:
            options["guidance"] = self.guidance[sample_index.to(self.guidance.device)]
        options |= {"return_features": True} if features else {}
        options |= {"return_velocity": True} if velocity else {}
        answer = self.network(x_t, *times, self.condition[sample_index], mask, **options)
        f, *others = answer if features or velocity else (answer,)
        return f, others[0] if features else None, others[-1] if velocity else None

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest precision of the weights: the answer may be float32 while the blocks are not."""
        kinds = {weight.dtype for weight in getattr(self.network, "parameters", list)()} & set(EPS)
        return max(kinds, key=EPS.__getitem__, default=torch.float32)


def forward_dtype(evaluate: Evaluation, value: Tensor) -> torch.dtype:
    """The coarsest precision that the network computes in: autocast's, else what `evaluate` says of itself."""
    device = value.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return getattr(evaluate, "dtype", value.dtype)


@dataclass(frozen=True)
class TransitionPoints:
    """Points x_t of a batch, from which a network is to learn transitions to r, with what it answers there.

    Attributes:
        transport: the transport that relates them to data and noise.
        x, z: the data and noise that the points were interpolated from, one row a point.
        F: the instantaneous target there, guided where guidance is trained into the model.
        t, r: source and target time of each point.
        sample_index: which sample of the batch each point belongs to.
        x_t: the points themselves.
        f: the network's answer f(x_t, t, r).
        v: its velocity f(x_t, t, t), where that came with f, from a network with branches.
        fresh_noise: standard normal noise that is independent of x_t, where it was drawn.
        null: the teacher with the empty condition, where there is one.
    """

    transport: Transport
    x: Sample
    z: Sample
    F: Sample
    t: Times
    r: Times
    sample_index: SampleIndex
    x_t: Sample
    f: Sample
    v: Sample | None = None
    fresh_noise: Sample | None = None
    null: Evaluation | None = None

    def select(self, rows: Int[Tensor, " chosen"]) -> "TransitionPoints":
        """These rows of the points."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        chosen: dict[str, Any] = {name: value[rows.to(value.device)] for name, value in tensors.items()}
        return replace(self, **chosen)
