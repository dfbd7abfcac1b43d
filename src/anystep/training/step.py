"""Evaluating the objective on the micro-batches of one step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from anystep.conditioning import Conditioner, LabelEncoder
from anystep.conditioning.text import pad_states
from anystep.data.latents import Encoded
from anystep.objective import GuidanceCondition, SelfEvaluation, TrainingBatch, TransitionObjective, derivative
from anystep.ranks import Ranks
from anystep.sampling import resolution_shift
from anystep.training.assemble import TrainingInputs
from anystep.training.config import Recipe
from anystep.training.loader import Draws, LoadedMicroBatch
from anystep.training.parallel import sync_gradients
from anystep.training.step_metrics import StepLosses


def choose_captions(examples: Sequence[Encoded], dropout: float, draws: Draws) -> list[int | None]:
    """For each sample which of its captions it is given, or None for the empty one, with probability `dropout`.

    Chosen once a step, so that every evaluation of the step sees the same. Classes are dropped alike.
    """
    dropped = (draws.drop < dropout).tolist()
    return [
        None if drop else int(share * max(1, len(example.captions)))
        for example, share, drop in zip(examples, draws.choice.tolist(), dropped, strict=True)
    ]


def encode_conditions(
    conditioner: Conditioner, examples: Sequence[Encoded], chosen: Sequence[int | None]
) -> tuple[Tensor, Tensor | None]:
    """Labels pass as they are, the null label included; captions are read from the data, or encoded."""
    pairs = list(zip(examples, chosen, strict=True))
    if isinstance(conditioner, LabelEncoder):
        null = len(conditioner.class_names)
        return torch.tensor([null if choice is None else example.label for example, choice in pairs]), None
    if any(example.text is None for example in examples):
        return conditioner(["" if choice is None else example.captions[choice] for example, choice in pairs])
    nothing = conditioner.null(1)[0][0]
    rows = [nothing if choice is None else (example.text or ())[choice] for example, choice in pairs]
    return pad_states(rows)


@dataclass(frozen=True)
class StepEvaluator:
    """Computes losses and gradients of a recipe.

    Attributes:
        wrapped: the network as the objective calls it, which averages gradients over processes.
        ema_network: the moving average of the network, for guidance and self-evaluation.
        precision: what blocks compute in.
    """

    inputs: TrainingInputs
    objective: TransitionObjective
    wrapped: nn.Module
    ema_network: nn.Module
    ranks: Ranks
    device: torch.device
    precision: torch.dtype

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    @cached_property
    def null_condition(self) -> Tensor:
        """The empty condition, one row."""
        return self.inputs.conditioner.null(1)[0]

    @cached_property
    def base(self) -> Any:
        """The frozen pipeline that a recipe follows, which is in the average as in the network; None without."""
        follows = self.recipe.adapt is not None and self.recipe.adapt.teacher
        return partial(self.ema_network, base=True) if follows else None

    @property
    def base_side(self) -> float:
        """Side in latent pixels of the square above whose area times are shifted towards noise."""
        return (self.recipe.transport.base_size or self.recipe.data.size) / self.inputs.codec.factor

    def objective_at(self, step: int) -> TransitionObjective:
        """The objective of a step: plain diffusion in the first phase, with a second derivative where it is logged."""
        config, objective = self.recipe.objective, self.objective
        if step < config.diffusion_phase * self.recipe.run.steps:
            draws = replace(objective.draws, diffusion_share=1.0, consistency_share=0.0)
            objective = replace(objective, draws=draws)
        if (step + 1) % self.recipe.run.log_every == 0:
            objective = replace(objective, probe=derivative(config.derivative, config.eps, widened=2.0))
        return objective

    @property
    def asks_average(self) -> bool:
        """Whether the target asks the EMA network and the empty condition."""
        guides = self.objective.guidance is not None
        return guides or self.objective.ema_teacher or isinstance(self.objective.target, SelfEvaluation)

    def batch(self, objective: TransitionObjective, loaded: LoadedMicroBatch, step: int) -> TrainingBatch:
        """What the objective is evaluated on, on the device."""
        draws, alignment = loaded.draws, self.recipe.alignment
        chosen = choose_captions(loaded.examples, self.recipe.condition_dropout, draws)
        condition, mask = encode_conditions(self.inputs.conditioner, loaded.examples, chosen)
        shift = torch.tensor([resolution_shift(*shape, self.base_side) for shape in loaded.shapes])
        t, r = objective.times(draws.normal, draws.uniform, shift if (shift > 1).any() else None)
        scale = None
        if isinstance(objective.guidance, GuidanceCondition):
            dropped = torch.tensor([caption is None for caption in chosen])
            scale = objective.guidance.scales(draws.guidance).where(~dropped, 1.0)
        null = self.null_condition.expand(len(condition), *self.null_condition.shape[1:])
        aligned = alignment is not None and step < alignment.until * self.recipe.run.steps
        return TrainingBatch(
            loaded.x, loaded.z, t, r, condition, mask,
            null_condition=null if self.asks_average else None, guidance=scale,
            features=loaded.features if aligned else None, fresh_noise=loaded.fresh, packing=loaded.packing,
        ).to(self.device)  # fmt: skip

    def __call__(self, micro_batches: Sequence[LoadedMicroBatch], step: int, abandon: bool = False) -> StepLosses:
        """The losses of a step; their gradients are added to those of the network.

        Args:
            abandon: make the gradients of all processes NaN, by which every one knows that this one wants to stop.
        """
        objective, waited = self.objective_at(step), 0.0
        losses, shapes = [], []
        for loaded in micro_batches:
            clock = time.perf_counter()
            batch = self.batch(objective, loaded, step)
            waited += time.perf_counter() - clock
            last = loaded is micro_batches[-1]
            sync_gradients(self.wrapped, last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
                found = objective.evaluate(
                    self.wrapped, batch, self.ema_network if self.asks_average else None,
                    progress=step / self.recipe.run.steps, base=self.base,
                )  # fmt: skip
            loss = found.loss * loaded.chosen.loss_weight * self.ranks.count  # gradients are averaged over processes
            (loss * torch.nan if abandon and last else loss).backward()
            losses.append(replace(found, loss=found.loss.detach()))
            length = batch.condition.shape[1] if batch.condition.ndim == 3 else 0
            shapes += [(*shape, length) for shape in loaded.shapes]
        return StepLosses(losses, [each.chosen.loss_weight for each in micro_batches], shapes, waited)
