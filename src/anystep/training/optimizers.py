"""Optimizers by name, from torch.optim, and the learning-rate schedule."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from anystep.errors import InputError
from anystep.training.adapter import trained
from anystep.training.config import OptimizerConfig


def make_adam(module: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """One for a small module beside the network, where it has anything to learn."""
    weights = list(module.parameters())
    return [torch.optim.Adam(weights, lr=config.learning_rate, betas=config.betas)] if weights else []


def make_optimizers(network: nn.Module, config: OptimizerConfig, device: torch.device) -> list[Optimizer]:
    """One, or for `muon` two: the blocks' matrices, and everything else.

    Raises:
        InputError: this PyTorch has none of that name.
    """
    if config.name == "adafactor":
        return [torch.optim.Adafactor(trained(network), lr=config.learning_rate, weight_decay=config.weight_decay)]
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = trained(network)
    if config.name == "muon":
        blocks: list[nn.Module] = network.all_blocks  # type: ignore[assignment]
        learning = {id(weight) for weight in rest}
        weights = [weight for block in blocks for weight in block.parameters() if id(weight) in learning]
        matrices = [weight for weight in weights if weight.ndim == 2]
        chosen = {id(weight) for weight in matrices}
        rest = [weight for weight in rest if id(weight) not in chosen]
    adamw = torch.optim.AdamW(
        rest, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=device.type != "mps"
    )
    if not matrices:
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"optimizer muon needs PyTorch 2.9 or newer, this is {torch.__version__}")
    # its updates scaled to the size of AdamW's, so that one learning rate serves both (arXiv 2502.16982)
    muon = torch.optim.Muon(
        matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]


def unfinished_warmup(config: OptimizerConfig, steps: int) -> str:
    """In words, that a run ends before its warm-up does; empty where it does not."""
    if steps >= config.warmup:
        return ""
    peak = learning_rate(config, steps - 1, steps)
    return (
        f"the run of {steps:,} steps ends in the warm-up of {config.warmup:,} (optimizer.warmup): the learning rate "
        f"comes to {peak:.3g}, not to {config.learning_rate:g}"
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to `final` of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.learning_rate * (config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2)
