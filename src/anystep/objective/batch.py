"""What one evaluation of an objective is given: the data, noise, times and conditions of a batch of samples."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anystep.objective.evaluation import BoundNetwork
from anystep.packing import Packing, Unpacked
from anystep.transport import Sample, Transport, expand


@dataclass(frozen=True)
class TrainingBatch:
    """Samples with the draws that their loss is taken at. Times and conditions have one row a sample.

    Attributes:
        x, z: (samples, channels, height, width) data and standard normal noise; (tokens, channels, patch, patch) of a
            packed batch.
        t, r: (samples,) source and target times, t >= r.
        condition, condition_mask: what the network is conditioned on, as it takes them.
        null_condition, null_mask: the empty condition, for targets that compare with it.
        guidance: (samples,) the guidance scale that the network is given, for a `GuidanceCondition`; 1 where the
            condition is the empty one.
        features: (samples, tokens, width) of an image encoder, for representation alignment; (tokens, width) of a
            packed batch.
        fresh_noise: noise that is independent of `z`, for a `SelfEvaluation`.
        packing: which token belongs to which sample, in a packed batch. A sample then weighs as much as it has tokens,
            so that packs and batches of one shape give the same loss.
    """

    x: Sample
    z: Sample
    t: Float[Tensor, " samples"]
    r: Float[Tensor, " samples"]
    condition: Tensor
    condition_mask: Tensor | None = None
    null_condition: Tensor | None = None
    null_mask: Tensor | None = None
    guidance: Float[Tensor, " samples"] | None = None
    features: Tensor | None = None
    fresh_noise: Sample | None = None
    packing: Packing | None = None

    @cached_property
    def layout(self) -> Packing | Unpacked:
        """Which row of `x` belongs to which sample."""
        return Unpacked(len(self.t), self.x.device) if self.packing is None else self.packing

    def to(self, device: torch.device) -> "TrainingBatch":
        """The batch with all its tensors on a device."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def by_row(self, values: Tensor) -> Tensor:
        """Values of each sample, repeated for every row of `x` that belongs to it."""
        return values[self.layout.sample_index.to(values.device)]

    def without_nonfinite(self) -> tuple["TrainingBatch", Bool[Tensor, " samples"]]:
        """The batch with zeros for the data of samples that are not finite, and which samples are."""
        finite = self.layout.all(self.x.flatten(1).isfinite().all(1))
        x = torch.where(expand(self.by_row(finite), self.x).bool(), self.x, 0.0)
        return replace(self, x=x), finite

    def bind(self, network: Any, transport: Transport) -> BoundNetwork:
        """The network with the condition of this batch."""
        return BoundNetwork(network, transport, self.condition, self.condition_mask, self.packing, self.guidance)

    def bind_null(self, network: Any, transport: Transport) -> BoundNetwork | None:
        """The network with the empty condition and without guidance; None where the batch has no empty condition."""
        if self.null_condition is None:
            return None
        unguided = None if self.guidance is None else torch.ones_like(self.guidance)
        return BoundNetwork(network, transport, self.null_condition, self.null_mask, self.packing, unguided)


class ValidMean:
    """The mean over the valid samples of a batch, in which a sample weighs as much as it has tokens."""

    def __init__(self, layout: Packing | Unpacked, valid: Bool[Tensor, " samples"], dtype: torch.dtype) -> None:
        token_count = torch.tensor(layout.lengths, device=valid.device, dtype=dtype) * valid
        self.valid, self.weight = valid, token_count / token_count.sum().clamp(min=1)

    def __call__(self, values: Float[Tensor, " samples"]) -> Tensor:
        return (self.weight * torch.where(self.valid, values, 0.0)).sum()
