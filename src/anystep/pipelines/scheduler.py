"""The any-step schedule and transition as a diffusers scheduler."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from anystep import bounds
from anystep.errors import InputError
from anystep.sampling import resolution_shift, schedule
from anystep.transport import make_transport


@dataclass
class TransitionSchedulerOutput(BaseOutput):
    """`prev_sample` is the sample at `r_timestep`."""

    prev_sample: Tensor


class TransitionScheduler(SchedulerMixin, ConfigMixin):
    """Times and transitions of a transport, with the calls of `FlowMapEulerDiscreteScheduler`.

    For `ot_fm` the two are interchangeable; this one also serves the other transports and a time for every sample.
    A timestep is `num_train_timesteps` times t.

    Args:
        transport, transport_options: of `make_transport`.
        shift: of the schedule, at the base size and below.
        base_size: side in pixels of the training base; larger areas shift the schedule further. None: no area does.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        transport: str = "ot_fm",
        transport_options: dict[str, float] | None = None,
        shift: float = 1.0,
        base_size: int | None = None,
        num_train_timesteps: int = 1000,
    ) -> None:
        if not isinstance(transport_options, dict | None):
            raise InputError(f"transport_options {bounds.shown(transport_options)}: expected numbers by name")
        self.transport = make_transport(transport, **(transport_options or {}))
        bounds.check("shift", shift, bounds.PositiveCoefficient)
        if base_size is not None:
            bounds.check("base_size", base_size, bounds.Side)
        self.set_timesteps(bounds.check("num_train_timesteps", num_train_timesteps, bounds.SamplingSteps))

    def times(self, steps: int, height: int | None = None, width: int | None = None, strength: float = 1.0) -> Tensor:
        """(steps + 1,) decreasing times t for an image of `height` x `width` pixels, from that share of them on."""
        base, shift = self.config.base_size, self.config.shift
        if base is not None:
            shift *= resolution_shift(height or base, width or base, base)
        return schedule(self.transport, steps, shift, strength)

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, height: int | None = None, width: int | None = None
    ) -> None:
        self.num_inference_steps = bounds.check("num_inference_steps", num_inference_steps, bounds.SamplingSteps)
        self.sigmas = self.times(num_inference_steps, height, width)
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, r_timestep: Any = None, return_dict: bool = True
    ) -> TransitionSchedulerOutput | tuple[Tensor]:
        """The transition from `timestep` to `r_timestep`: numbers, or tensors with one time a sample.

        Without `r_timestep`, to the next time of the schedule below `timestep`.
        """
        if r_timestep is None:
            times = self.sigmas * self.config.num_train_timesteps
            now = torch.as_tensor(timestep, dtype=torch.float32).cpu().reshape(-1)
            # relative, as float32 is: times of edm and ve reach 100,000
            r_timestep = times[(times[:-1, None] >= now * (1 - 1e-6)).sum(0)]
        t, r = (
            (torch.as_tensor(time, dtype=torch.float32, device=sample.device) / self.config.num_train_timesteps)
            .reshape(-1)
            .expand(len(sample))
            for time in (timestep, r_timestep)
        )
        previous = self.transport.transition(sample.float(), model_output.float(), t, r).to(sample.dtype)
        return TransitionSchedulerOutput(prev_sample=previous) if return_dict else (previous,)


TransitionScheduler.__module__ = "anystep"
