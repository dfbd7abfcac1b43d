"""Guidance that is trained into a model, so that a guided image costs one evaluation a step."""

from dataclasses import dataclass

import torch

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

    @torch.no_grad()
    def __call__(self, F: Sample, t: Times, conditional: Sample, null: Sample) -> Sample:
        guided = self.w_gt * F + self.w_cond * conditional + (1 - self.w_gt - self.w_cond) * null
        return torch.where(expand((t >= self.start) & (t <= self.end), F).bool(), guided, F)
