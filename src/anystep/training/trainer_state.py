"""What a training run is resumed from: where it is, and its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

LOST = 3  # skipped steps in a row at the end of a run that mean that it has diverged


@dataclass
class TrainerState:
    """Where a run is; kept in the manifest of every checkpoint.

    Attributes:
        step: number of steps that were made until it was last saved, skipped ones included.
        data_offset: how far the position in the data is ahead of the step, because the run went back to a checkpoint.
        skipped, skipped_in_a_row: number of steps whose gradient was not finite, in all and up to this step.
        spikes: number of steps whose gradient norm stood out.
        rollbacks: number of times that the run went back to a checkpoint.
        diverged: whether the weights are those of a run that has lost its way.
        base: what tells the weights that an adapter is trained on from others; "" of a run of a whole network.
    """

    step: int = 0
    data_offset: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    spikes: int = 0
    rollbacks: int = 0
    diverged: bool = False
    base: str = ""

    @classmethod
    def of(cls, manifest: Mapping[str, Any] | None) -> "TrainerState":
        """The state in a checkpoint's manifest; that of a new run where there is none."""
        return cls(**{name: value for name, value in (manifest or {}).items() if name in cls.__dataclass_fields__})

    def reach(self, step: int, finite: bool) -> None:
        """Note that a step is saved; the run has diverged if the step's residual or loss is not finite."""
        self.step, self.diverged = step, self.skipped_in_a_row >= LOST or not finite


COUNTS = tuple(field.name for field in fields(TrainerState) if field.type is int)


class TrainingTensors:
    """The tensors of a run: network, EMA networks and optimizers, sharded or not, by the names of the plain network.

    Args:
        normaliser, normaliser_optimizers: what the loss has learned, of residuals or real images, replicated in every
            process.
    """

    def __init__(
        self,
        network: nn.Module,
        averages: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        normaliser: nn.Module | None = None,
        normaliser_optimizers: Sequence[Optimizer] = (),
    ) -> None:
        self.network, self.averages, self.optimizers = network, averages, optimizers
        self.normaliser, self.normaliser_optimizers = normaliser, normaliser_optimizers
        # of an adapter the frozen network is no part: it is where it was read from
        frozen = not all(weight.requires_grad for weight in network.parameters())
        self._options = StateDictOptions(ignore_frozen_params=frozen, strict=not frozen)

    def state_dict(self) -> dict[str, Any]:
        network, optimizer = get_state_dict(self.network, self.optimizers, options=self._options)
        state = {"network": network, "optimizer": optimizer}
        for place, each in enumerate(self.averages):
            average = get_model_state_dict(each)
            state[f"ema-{place}"] = {name: average[name] for name in network}
        if self.normaliser is not None:
            state["normaliser"] = get_model_state_dict(self.normaliser)
        if self.normaliser is not None and self.normaliser_optimizers:
            state["normaliser-optimizer"] = get_optimizer_state_dict(self.normaliser, self.normaliser_optimizers)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        set_state_dict(
            self.network, self.optimizers, model_state_dict=state["network"], optim_state_dict=state["optimizer"],
            options=self._options,
        )  # fmt: skip
        for place, each in enumerate(self.averages):
            set_model_state_dict(each, state[f"ema-{place}"], options=StateDictOptions(strict=self._options.strict))
        if self.normaliser is not None:
            set_model_state_dict(self.normaliser, state["normaliser"])
        if self.normaliser is not None and self.normaliser_optimizers:
            set_optimizer_state_dict(self.normaliser, self.normaliser_optimizers, state["normaliser-optimizer"])
