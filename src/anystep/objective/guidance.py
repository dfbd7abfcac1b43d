"""Guidance that is trained into a model, so that a guided step costs one network evaluation."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from anystep.transport import Sample, Times, expand


@dataclass(frozen=True)
class ModelGuidance:
    """Guidance trained into the model (eq. 17 and section 4.2), written in F space so that it serves every transport.

    Inside `t in [start, end]`: F <- w_gt F + w_cond f_ema(x_t, t, t, c) + (1 - w_gt - w_cond) f_ema(x_t, t, t, null).
    """

    w_gt: float = 1.0
    w_cond: float = 0.75
    start: float = 0.3
    end: float = 0.8

    def needs_evaluation(self, t: Times, scale: Times | None = None) -> Bool[Tensor, " batch"]:
        """Which samples need the two further network evaluations."""
        return torch.ones_like(t, dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, F: Sample, t: Times, conditional: Sample, null: Sample, scale: Times | None = None) -> Sample:
        guided = self.w_gt * F + self.w_cond * conditional + (1 - self.w_gt - self.w_cond) * null
        return torch.where(expand((t >= self.start) & (t <= self.end), F).bool(), guided, F)


@dataclass(frozen=True)
class GuidanceCondition:
    """Guidance of every scale w in one model, which is given w (improved MeanFlow, arXiv 2512.02012), in F space.

    Inside `t in [start, end]`: F <- F + (1 - 1/w) (f_ema(x_t, t, t, c, w) - f_ema(x_t, t, t, null, 1)). At its fixed
    point the mean of f is w f(c, 1) + (1 - w) f(null, 1): classifier-free guidance of scale w.

    Args:
        w_max: the largest scale; ln w is uniform from 0 to ln w_max.
        start, end: the interval of t that is guided; all times by default.
    """

    w_max: float = 8.0
    start: float = -math.inf
    end: float = math.inf

    def scales(self, uniform: Times) -> Times:
        """Guidance scales w from uniform draws."""
        return (uniform * math.log(self.w_max)).exp()

    def needs_evaluation(self, t: Times, scale: Times | None = None) -> Bool[Tensor, " batch"]:
        """Which samples need the two further network evaluations: those that w changes."""
        assert scale is not None
        return (t >= self.start) & (t <= self.end) & (scale > 1)

    @torch.no_grad()
    def __call__(self, F: Sample, t: Times, conditional: Sample, null: Sample, scale: Times | None = None) -> Sample:
        assert scale is not None
        strength = torch.where(self.needs_evaluation(t, scale), 1 - 1 / scale, 0.0)
        return F + expand(strength, F) * (conditional - null)
