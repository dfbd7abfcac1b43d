"""`anystep train --dry-run` and `anystep plan --train`: what a recipe takes, on this machine or on named devices."""

import math
from dataclasses import asdict
from typing import Any

import torch

from anystep.device import pick_precision, planned_device
from anystep.errors import InputError
from anystep.models.presets import PRESETS
from anystep.pipelines.plan import ModelSpec
from anystep.training.adapter import count_adapter, on_base
from anystep.training.batch_samplers import count_micro_batches
from anystep.training.config import Recipe
from anystep.training.objective import check_differences, make_objective
from anystep.training.optimizers import unfinished_warmup
from anystep.training.plan import check_memory, communication, recipe_evaluations


class DryRun:
    """A recipe on so many devices of one kind.

    Args:
        on: their name in `anystep.data_sheets`; those of this machine where None.

    Raises:
        InputError: the recipe cannot be trained, its batch does not divide into so many processes, or it does not fit.
    """

    def __init__(self, recipe: Recipe, on: str | None, devices: int = 1, utilisation: float | None = None) -> None:
        if recipe.adapt is not None:
            raise InputError(
                "--dry-run: counts operations of transition transformers, and adapt trains another network"
            )
        recipe = on_base(recipe)
        objective = make_objective(recipe)
        count_micro_batches(recipe.data, recipe.run, devices)
        self.recipe, self.devices = recipe, devices
        self.device = device = planned_device(on, recipe.run.device, utilisation)
        if device.device is not None:
            self.precision = pick_precision(recipe.run.precision, device.device)
        else:
            self.precision = torch.float32 if recipe.run.precision == "float32" else torch.bfloat16
        check_differences(objective, recipe.objective, self.precision)
        self.budget = check_memory(recipe, devices, device.memory, self.precision)
        self.seconds = self.budget.flops_per_step / (devices * device.rate)  # of a step

    def describe(self) -> dict[str, str]:
        """In words."""
        device, run, plan, seconds = self.device, self.recipe.run, self.budget, self.seconds
        facts = {
            "parameters": f"{plan.parameters:,}",
            **({"trained": f"{count_adapter(self.recipe):,} of an adapter"} if self.recipe.lora else {}),
            "tokens": f"{plan.tokens_per_image:,} an image, {plan.tokens_per_step:,} a step",
            "network evaluations": f"{recipe_evaluations(self.recipe):.2f} a sample",
            "operations": f"{plan.flops_per_step / 1e12:,.3f} TFLOP a step",
            "memory": f"{plan.device_bytes / 1e9:.2f} GB of {device.memory / 1e9:.0f} GB on each of {self.devices} "
            f"devices: {plan.state_bytes / 1e9:.2f} GB for weights, gradients, moments and averages, "
            f"{plan.activation_bytes / 1e9:.2f} GB for a step",
        }
        if device.kind is not None and self.devices > 1:
            sent = communication(self.recipe, self.devices)
            facts["communication"] = (
                f"{sent.inside / 1e9:.2f} GB a step from each device, {sent.between / 1e9:.2f} GB between machines: "
                f"{sent.seconds(device.kind):.3g} s beside {seconds:.3g} s of computing"
            )
        facts["checkpoint"] = f"{plan.checkpoint_bytes / 1e9:.2f} GB, {run.keep + 1} at a time"
        if self.recipe.ema_lengths:
            facts["snapshots"] = f"{plan.snapshot_bytes / 1e9:.2f} GB, {self.recipe.ema_snapshots} in all"
        facts["time"] = (
            f"{run.steps * seconds / 86_400:.2g} days for {run.steps:,} steps at {device.rate / 1e12:.3g} TFLOP/s a "
            f"device ({plan.images_per_step / seconds:.3g} images/s)"
        )
        if warning := unfinished_warmup(self.recipe.optimizer, run.steps):
            facts["warm-up"] = warning
        return facts

    def figures(self) -> dict[str, Any]:
        """In numbers, of bytes, operations and seconds."""
        return {
            **asdict(self.budget),
            "devices": self.devices,
            "device_bytes": self.budget.device_bytes,
            "memory_bytes": self.device.memory,
            "flops_per_second": self.device.rate,
            "precision": str(self.precision).removeprefix("torch."),
            "steps": self.recipe.run.steps,
            "seconds": self.seconds * self.recipe.run.steps,
            "images_per_second": self.budget.images_per_step / self.seconds,
        }


def preset_recipe(
    preset: str,
    width: int,
    height: int,
    batch: int = 256,
    parallel: str = "ddp",
    checkpointing: bool = False,
    device: str = "auto",
) -> Recipe:
    """Training of a preset on squares of as many pixels as `width x height`.

    Raises:
        InputError: no preset.
    """
    if preset not in PRESETS:
        raise InputError(f"--train --model {preset!r}: expected a preset, one of {', '.join(PRESETS)}")
    model = ModelSpec.of(preset)
    side = max(1, round(math.sqrt(width * height) / model.multiple)) * model.patch  # in latent pixels
    return Recipe.model_validate(
        {
            "model": {"preset": preset, "codec": "identity", "gradient_checkpointing": checkpointing},
            "data": {"size": side},
            "run": {"batch_size": batch, "device": device},
            "parallel": parallel,
        }
    )
