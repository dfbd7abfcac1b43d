"""What a run will take, before it takes it: operations, memory, disk and days. Refuses what cannot fit."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from anystep.codecs import load_codec
from anystep.errors import InputError
from anystep.models.presets import PRESETS
from anystep.objective import TARGET_COST
from anystep.planning import count_parameters, device_kind, network_cost
from anystep.training.config import ObjectiveConfig, Recipe

# a backward pass is counted as two forward ones
TRAINING_COST = 3
CAPTION_TOKENS = 256  # a caption's most
WORTH_A_LOOK = 0.05  # of the memory: runs whose weights and moments take less are not planned before they start


def evaluations_per_sample(config: ObjectiveConfig) -> float:
    """What a sample costs in a training step, on average over the run."""
    target = TARGET_COST[config.derivative if config.target == "identity" else config.target]
    moving = (1 - config.diffusion_phase) * (1 - config.diffusion_share)
    return TRAINING_COST + moving * target + (2 if config.guidance is not None else 0)


@dataclass(frozen=True)
class Budget:
    """Of one run.

    Attributes:
        parameters: of the network.
        tokens_per_image: positions of the transformer.
        tokens_per_step: of the whole batch.
        flops_per_step: of all devices together, on average over the run.
        state_bytes: weights, gradients, moments and averages on one device.
        activation_bytes: the most that a step holds beside them.
        checkpoint_bytes: of one checkpoint.
    """

    parameters: int
    tokens_per_image: int
    tokens_per_step: int
    flops_per_step: float
    state_bytes: int
    activation_bytes: int
    checkpoint_bytes: int

    @property
    def device_bytes(self) -> int:
        return self.state_bytes + self.activation_bytes


def latent_side(recipe: Recipe) -> int:
    """Of the latents of square images of `data.size`.

    Where the codec cannot be asked because it is not on this machine, the preset's size is believed.
    """
    try:
        return recipe.data.size // load_codec(codec_spec(recipe.model.codec)).factor
    except InputError:
        side = {**PRESETS[recipe.model.preset], **recipe.model.options}["sample_size"]
        return int(side)


def codec_spec(name: str) -> str:
    """What `load_codec` is to load for it."""
    from anystep.pipelines.load import find

    return str(Path(find("builtin")) / "codec") if name == "builtin" else name


def weight_copies(recipe: Recipe) -> int:
    """Numbers kept for each weight: itself, its gradient, two moments, and its averages."""
    return 4 + len(recipe.ema_decays)


def budget(recipe: Recipe, processes: int = 1, precision: torch.dtype = torch.float32) -> Budget:
    """What the recipe takes on so many devices.

    Raises:
        InputError: an unknown preset or option.
    """
    options = dict(recipe.model.options)
    side = latent_side(recipe)
    micro = max(1, recipe.run.batch_size // (processes * recipe.run.accumulate))
    try:
        cost = network_cost(
            recipe.model.preset, micro, side, side, CAPTION_TOKENS, precision, recipe.model.gradient_checkpointing,
            **options,
        )  # fmt: skip
        # the derivative evaluates both sides of every sample that moves, at worst all, while the forward's graph waits
        moving = recipe.objective.diffusion_share < 1
        target = (
            network_cost(recipe.model.preset, 2 * micro, side, side, CAPTION_TOKENS, precision, **options).forward_bytes
            if moving
            else 0
        )
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    shards = {"fsdp": processes, "hsdp": recipe.run.shard_size or processes}.get(recipe.parallel, 1)
    tokens = (side // int({**PRESETS[recipe.model.preset], **options}["patch_size"])) ** 2
    evaluations = evaluations_per_sample(recipe.objective) + recipe.model.gradient_checkpointing
    return Budget(
        parameters=cost.parameters,
        tokens_per_image=tokens,
        tokens_per_step=tokens * recipe.run.batch_size,
        flops_per_step=cost.flops / micro * recipe.run.batch_size * evaluations,
        state_bytes=4 * cost.parameters * weight_copies(recipe) // shards,
        activation_bytes=max(cost.training_bytes, cost.saved_bytes + target),
        checkpoint_bytes=4 * cost.parameters * (weight_copies(recipe) - 1),
    )


def memory_of(device: torch.device) -> float:
    """Bytes of the device, or of the machine."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def flops_of(device: torch.device) -> float:
    """Operations a second: of the data sheet where the device is known, else what a product of matrices reaches."""
    if device.type == "cuda" and (kind := device_kind(torch.cuda.get_device_name(device))) is not None:
        return kind.flops
    one = torch.randn(1024, 1024, device=device)
    begin, rounds = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.2:
        (one @ one)[0, 0].item()
        rounds += 1
    return 2 * 1024**3 * rounds / (time.perf_counter() - begin)


def check_fits(recipe: Recipe, out: Path, processes: int, device: torch.device, precision: torch.dtype) -> None:
    """Before anything is loaded.

    Raises:
        InputError: more memory or disk than there is; says how much, and what would fit.
    """
    parameters = count_parameters(recipe.model.preset, **recipe.model.options)
    state = 4 * parameters * weight_copies(recipe)
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    disk, free = state * (recipe.run.keep + 1), shutil.disk_usage(place).free
    if disk > free:
        raise InputError(
            f"{recipe.run.keep + 1} checkpoints take up to {disk / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB left: "
            "make room, lower run.keep, or choose another --out"
        )
    memory = memory_of(device)
    if state < WORTH_A_LOOK * memory:
        return
    check_memory(recipe, processes, memory, precision)


def check_memory(recipe: Recipe, processes: int, memory: float, precision: torch.dtype) -> Budget:
    """The budget, if it fits.

    Raises:
        InputError: it does not; names the largest batch that would.
    """
    whole = budget(recipe, processes, precision)
    if whole.device_bytes > memory:
        parts = recipe.run.batch_size // processes
        fitting = int((memory - whole.state_bytes) / (whole.activation_bytes * recipe.run.accumulate / max(1, parts)))
        hint = (
            f"{fitting} images at a time would fit: raise run.accumulate"
            if fitting >= 1
            else "the weights and what is kept for each do not fit: parallel fsdp on more devices, or a smaller preset"
        )
        raise InputError(
            f"a step takes {whole.device_bytes / 1e9:.1f} GB on each device ({whole.state_bytes / 1e9:.1f} GB for "
            f"weights, gradients, moments and averages), there are {memory / 1e9:.1f} GB; {hint}"
        )
    return whole


def describe(recipe: Recipe, processes: int, memory: float, flops: float, precision: torch.dtype) -> dict[str, str]:
    """The budget in words; raises as `check_memory` does.

    Args:
        memory: bytes of one device.
        flops: operations that one device does in a second of this work.
    """
    plan = check_memory(recipe, processes, memory, precision)
    rate = processes * flops / plan.flops_per_step
    days = recipe.run.steps / rate / 86_400
    return {
        "parameters": f"{plan.parameters:,}",
        "tokens": f"{plan.tokens_per_image:,} an image, {plan.tokens_per_step:,} a step",
        "network evaluations": f"{evaluations_per_sample(recipe.objective):.2f} a sample",
        "operations": f"{plan.flops_per_step / 1e12:,.3f} TFLOP a step",
        "memory": f"{plan.device_bytes / 1e9:.2f} GB of {memory / 1e9:.0f} GB on each of {processes} devices: "
        f"{plan.state_bytes / 1e9:.2f} GB for weights, gradients, moments and averages, "
        f"{plan.activation_bytes / 1e9:.2f} GB for a step",
        "checkpoint": f"{plan.checkpoint_bytes / 1e9:.2f} GB, {recipe.run.keep + 1} at a time",
        "time": f"{days:.2g} days for {recipe.run.steps:,} steps at {flops / 1e12:.3g} TFLOP/s a device "
        f"({rate * recipe.run.batch_size:.3g} images/s)",
    }
