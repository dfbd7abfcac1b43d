"""What the steps of a run log: kept where it was found, and put together over processes only where it is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anystep.console import say
from anystep.data_sheets import device_kind
from anystep.models.cost import forward_flops
from anystep.objective import LossRecord, TransitionObjective, residual_by_bin
from anystep.ranks import Ranks
from anystep.training.config import ModelConfig, RunConfig
from anystep.training.guard import listed
from anystep.training.loader import PrefetchingLoader
from anystep.transport import Transport

LONGEST = 100  # steps that are kept before they are written
LOGGED = ("residual", "t", "r")  # of each sample


@dataclass(frozen=True)
class StepLosses:
    """The losses of one step in this process.

    Attributes:
        losses: one for each micro-batch, without gradient.
        weights: of the micro-batches in the loss of the step.
        shapes: rows and columns of each latent, and the number of tokens of its caption.
        waited: seconds that the device waited for data.
    """

    losses: list[LossRecord]
    weights: list[float]
    shapes: list[tuple[int, int, int]]
    waited: float


class _Kept(NamedTuple):
    """A step that is not written yet."""

    position: int
    losses: StepLosses
    figures: dict[str, Any]
    bins: bool


class StepMetrics:
    """The figures of the steps since the last `flush`, which alone waits for the device and for other processes.

    Args:
        model: the network's preset and options, for the operations that a step takes.
        loader: knows which examples each step saw, and of which size tokens are.
        aligned: whether the run has a representation-alignment loss.
        peak: operations a second of one device, for the utilisation; None where they are not known.
    """

    def __init__(
        self,
        objective: TransitionObjective,
        model: ModelConfig,
        loader: PrefetchingLoader,
        ranks: Ranks,
        aligned: bool,
        peak: float | None,
    ) -> None:
        self._objective, self._loader, self._ranks, self._aligned, self._peak = objective, loader, ranks, aligned, peak
        self._flops = forward_flops(model.preset, **model.options) if peak else None
        self._kept: list[_Kept] = []
        self.any_finite = True  # whether a residual of the last step that was flushed was
        # the largest number of samples that one process has in a step
        self.capacity = loader.sampler.micro_batches // ranks.count * loader.sampler.max_images

    @property
    def full(self) -> bool:
        """Whether so many steps are kept that they should be flushed."""
        return len(self._kept) >= LONGEST

    def add(self, position: int, losses: StepLosses, figures: dict[str, Any], bins: bool) -> None:
        """Keep what one step found.

        Args:
            position: of the step in the data.
            figures: what is known of the step without asking the device: its number, its learning rate, ...
            bins: whether its residual by bins of (t, r) is logged too.
        """
        self._kept.append(_Kept(position, losses, figures, bins))

    def flush(self) -> list[dict[str, Any]]:
        """The log records of all steps that were kept, put together over all processes in one collective."""
        if not self._kept:
            return []
        own = torch.stack([self._flatten(step.losses) for step in self._kept])
        numbers = self._ranks.gather(own[None]).unbind(1)  # of each step: (processes, numbers)
        records, count = [], len(LOGGED) * self.capacity
        for step, found in zip(self._kept, numbers, strict=True):
            samples = found[:, :count].reshape(-1, len(LOGGED))
            residual, t, r = samples[~samples[:, 1].isnan()].float().T
            sums = found[:, count:].sum(0).tolist()
            bad = self.nonfinite(step.position, residual)
            if bad and math.isfinite(step.figures["gradient_norm"]) and self._ranks.is_main:  # else it was said at once
                say(f"step {step.figures['step']}: not finite, samples {listed(bad)}", error=True)
            records.append(self._record(step, (residual, t, r), sums, len(bad)))
        self._kept.clear()
        return records

    def nonfinite(self, position: int, residual: Tensor) -> list[int]:
        """Numbers of the examples whose residual is not a number, of a step of all processes."""
        rows = residual.isnan().nonzero().squeeze(1).tolist()
        examples = self._loader.examples(position) if rows else []
        return sorted({examples[row] for row in rows})

    def _flatten(self, step: StepLosses) -> Tensor:
        """All that is logged of a step in this process, as numbers: samples first, then sums."""
        samples = padded_samples(step.losses, LOGGED, self.capacity).cpu().double().flatten()
        pairs = list(zip(step.weights, step.losses, strict=True))
        patch = self._loader.patch
        sums = [
            sum(weight * loss.loss.item() for weight, loss in pairs),
            float(sum(loss.evaluations for loss in step.losses)),
            float(sum(rows * columns for rows, columns, _ in step.shapes)) / patch**2,
            float(sum(self._flops(*each) for each in step.shapes)) if self._flops else 0.0,
            sum(weight * loss.alignment.item() for weight, loss in pairs),
            *derivative_sums(step.losses),
        ]
        return torch.cat([samples, torch.tensor(sums, dtype=torch.float64)])

    def _record(
        self, step: _Kept, samples: tuple[Tensor, Tensor, Tensor], sums: Sequence[float], nonfinite: int
    ) -> dict[str, Any]:
        """The log record of one step, from the samples and the sums of all processes."""
        (residual, t, r), figures = samples, step.figures
        loss, evaluations, tokens, flops, alignment, squares, moving, noise, noted = sums
        seconds, images = figures["seconds"], len(t)
        self.any_finite = bool(residual.isfinite().any())
        record = {
            "step": figures["step"],
            "loss": loss,
            "residual": residual.nanmean().item(),
            **interval_residuals(residual, t, r),
            **({"alignment": alignment} if self._aligned else {}),
            **(residual_bins(self._objective.transport, t, r, residual) if step.bins else {}),
            "derivative_norm": math.sqrt(squares / moving) if moving else 0.0,
            "gradient_norm": figures["gradient_norm"],
            "learning_rate": figures["learning_rate"],
            "evaluations": int(evaluations) if evaluations.is_integer() else evaluations,
            "nonfinite": nonfinite,
            **figures,
            "images_per_second": images / seconds,
            "tokens_per_second": tokens / seconds,
            "data_wait": step.losses.waited / seconds,
        }
        if noted:
            record["derivative_noise"] = noise / noted
        if self._peak:
            learned = float(images)
            if self._objective.velocity is not None:  # its branch is learned beside that of transitions
                learned += self._objective.velocity.cost * int((t > r).sum())
            peak = self._peak * self._ranks.count
            record["mfu"] = utilisation(flops / images, evaluations, learned, seconds, peak)
        return record


def padded_samples(losses: Sequence[LossRecord], names: Sequence[str], capacity: int) -> Tensor:
    """These fields of every sample of this process, a row each; rows of NaN up to `capacity`."""
    rows = torch.stack([torch.cat([getattr(loss, name) for loss in losses]) for name in names]).T
    padded = rows.new_full((capacity, len(names)), torch.nan)
    padded[: len(rows)] = rows
    return padded


def gathered_samples(losses: Sequence[LossRecord], ranks: Ranks, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted residual, t and r of every sample of all processes, each of which has at most `capacity`."""
    found = ranks.gather(padded_samples(losses, ("weighted_residual", "t", "r"), capacity)).cpu()
    residual, t, r = found[~found[:, -1].isnan()].T
    return residual, t, r


def derivative_sums(losses: Sequence[LossRecord]) -> list[float]:
    """What gives the derivative's root mean square and noise over all micro-batches: sums over samples with t > r."""
    squares, moving, noise, noted = 0.0, 0, 0.0, 0
    for loss in losses:
        count = int((loss.t > loss.r).sum())
        squares, moving = squares + count * loss.derivative_norm.item() ** 2, moving + count
        if loss.derivative_noise is not None:
            noise, noted = noise + count * loss.derivative_noise.item(), noted + count
    return [squares, float(moving), noise, float(noted)]


def interval_residuals(residual: Tensor, t: Tensor, r: Tensor) -> dict[str, float]:
    """Mean unweighted residual at t = r, and over the shorter and the longer half of the intervals."""
    interval = t - r
    middle = interval[interval > 0].median() if (interval > 0).any() else torch.tensor(0.0)
    groups = {
        "residual_diffusion": interval == 0,
        "residual_short": (interval > 0) & (interval <= middle),
        "residual_long": interval > middle,
    }
    return {name: residual[rows].nanmean().item() for name, rows in groups.items() if rows.any()}


def residual_bins(transport: Transport, t: Tensor, r: Tensor, residual: Tensor) -> dict[str, list[list[Any]]]:
    """Mean unweighted residual on a grid over (t, r), null where there was none, and how many samples each has."""
    sums, counts = residual_by_bin(transport, t, r, residual)
    means = [
        [total / count if count else None for total, count in zip(*pair, strict=True)]
        for pair in zip(sums.tolist(), counts.tolist(), strict=True)
    ]
    return {"residual_bins": means, "bin_counts": counts.tolist()}


def peak_flops(config: RunConfig, device: torch.device) -> float | None:
    """Operations a second of one device, if they are known."""
    if config.peak_tflops is not None:
        return 1e12 * config.peak_tflops
    kind = device_kind(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if kind is None else kind.flops


def utilisation(
    flops: int | float, evaluations: int | float, batch_size: int | float, seconds: float, peak: float
) -> float:
    """Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): what the mathematics needs against the peak.

    Args:
        flops: of one evaluation of the network.
        evaluations: forwards of the step, with and without gradient.
        batch_size: backward passes, each of which counts as two forwards.
        peak: operations a second of all devices together.
    """
    return flops * (evaluations + 2 * batch_size) / seconds / peak
