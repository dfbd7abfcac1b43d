# Copyright 2026 The anystep authors and The HuggingFace Team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import math
from dataclasses import dataclass

import torch

from ..configuration_utils import ConfigMixin, register_to_config
from ..utils import BaseOutput
from .scheduling_utils import SchedulerMixin


@dataclass
class TransitionSchedulerOutput(BaseOutput):
    """
    Output class for the scheduler's `step` function output.

    Args:
        prev_sample (`torch.Tensor`):
            The sample at `r_timestep`, which is the next input of the model.
        pred_original_sample (`torch.Tensor`):
            The clean sample that the model has in mind, for previews.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


# The functions of time of x_t = alpha x + sigma z and of the model's target F = alpha_hat x + sigma_hat z, and the
# range of times. Every transition follows from them.
_RANGES = {"ot_fm": (0.0, 1.0), "trigflow": (0.0, 1.57), "edm": (0.01, 80.0), "vp": (1e-5, 1.0), "ve": (0.02, 100.0)}


class TransitionScheduler(SchedulerMixin, ConfigMixin):
    """
    Transitions between any two times of a transport, as introduced in [Transition Models: Rethinking the Generative
    Learning Objective](https://huggingface.co/papers/2509.04394): one evaluation of the model carries a sample from
    `timestep` to any lower `r_timestep`, so the same weights sample in any number of steps.

    For `transport="ot_fm"` a step is that of [`FlowMapEulerDiscreteScheduler`]; this scheduler also serves the other
    transports of the paper, takes a time for every sample of a batch, and shifts the times of large images.

    This scheduler inherits from [`SchedulerMixin`] and [`ConfigMixin`]. Check the superclass documentation for the
    generic methods implemented for all schedulers (loading, saving, etc.).

    Args:
        transport (`str`, defaults to `"ot_fm"`):
            One of `"ot_fm"` (rectified flow), `"trigflow"`, `"edm"`, `"vp"` and `"ve"`.
        transport_options (`dict`, *optional*):
            Options of the transport in place of their defaults: `t_min`, `t_max`, `sigma_data` (`edm`), `beta_min` and
            `beta_d` (`vp`).
        shift (`float`, defaults to 1.0):
            Shift of the times towards noise.
        base_size (`int`, *optional*):
            Side in pixels of the images in training; larger areas are shifted further, by the root of their ratio.
        num_train_timesteps (`int`, defaults to 1000):
            Timesteps are this many times the time of the transport.
        plans (`dict`, *optional*):
            By a number of steps, what is best for it: `steps`, `shift` and `tail` of the times, `stochasticity`,
            `velocity_below`, `memory`, `guidance_share` and `guided_above`, as attributes of this name say once
            `set_timesteps` was called. Uniform times by default.
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
        plans: dict[str, dict[str, float]] | None = None,
    ):
        if transport not in _RANGES:
            raise ValueError(f"`transport` must be one of {list(_RANGES)}, but is {transport!r}")
        options = {"sigma_data": 0.5, "beta_min": 0.1, "beta_d": 19.9, **(transport_options or {})}
        self._options = options
        self.t_min = float(options.get("t_min", _RANGES[transport][0]))
        self.t_max = float(options.get("t_max", _RANGES[transport][1]))
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self.set_timesteps(num_train_timesteps)

    @property
    def step_index(self) -> int | None:
        """How many steps of the schedule are done; `None` before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The step of the schedule that comes first, set by `set_begin_index`."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        """
        Sets the step of the schedule that comes first.

        Args:
            begin_index (`int`, defaults to 0): Its index.
        """
        self._begin_index = begin_index

    def coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The functions of the transport at some times.

        Args:
            t (`torch.Tensor`): Times, not timesteps.

        Returns:
            `tuple`: alpha, sigma, alpha_hat and sigma_hat.
        """
        transport, zero, one = self.config.transport, torch.zeros_like(t), torch.ones_like(t)
        if transport == "ot_fm":
            return 1 - t, t, -one, one
        if transport == "trigflow":
            return t.cos(), t.sin(), -t.sin(), t.cos()
        if transport == "edm":
            sigma_data = self._options["sigma_data"]
            norm = (t.square() + sigma_data**2).sqrt()
            return 1 / norm, t / norm, t / (sigma_data * norm), -sigma_data / norm
        if transport == "vp":
            ratio = torch.expm1(self._options["beta_d"] * t.square() / 2 + self._options["beta_min"] * t).sqrt()
            alpha = (ratio.square() + 1).rsqrt()
            return alpha, ratio * alpha, zero, one
        return one, t, zero, -one

    def c_noise(self, timestep: torch.Tensor) -> torch.Tensor:
        """
        The time that the model is given for a timestep.

        Args:
            timestep (`torch.Tensor`): In the units of `timesteps`.
        """
        t = timestep / self.config.num_train_timesteps
        functions = {"edm": lambda t: t.log() / 4, "vp": lambda t: 999 * t, "ve": lambda t: (t / 2).log()}
        return functions.get(self.config.transport, lambda t: t)(t)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        timesteps: list[float] | None = None,
        height: int | None = None,
        width: int | None = None,
    ):
        """
        Sets the times of the steps. `timesteps` are where they begin; `sigmas` are the times, that of the end included.
        A number of steps is spent as its plan says, where there is one:

        - `velocity_below` (`float`): jumps of at most this share of the range of times carry the velocity along, which
          is the model's prediction for an interval of no length, in place of that for the whole jump.
        - `memory` (`bool`): such a jump after another one is corrected by [`~TransitionScheduler.extrapolate`].
        - `stochasticity` (`float`): the share of its way to the end that each jump but the last goes too far, and gets
          back by fresh noise ([`~TransitionScheduler.renoise`]).
        - `guidance_share` (`float`): how much of a guidance scale above 1 the steps take: `1 + share * (scale - 1)`.
        - `guided_above` (`float`): the share of the range of times below which no step is guided.

        Args:
            num_inference_steps (`int`, *optional*): Number of steps; a plan may make fewer of them.
            device (`str` or `torch.device`, *optional*): Where `timesteps` are kept.
            sigmas (`list[float]`, *optional*): Times where the steps begin, in place of a number; shifted too.
            timesteps (`list[float]`, *optional*): The same as timesteps.
            height (`int`, *optional*): Of the image in pixels, for the shift of large ones.
            width (`int`, *optional*): Of the image in pixels.
        """
        if sigmas is not None and timesteps is not None:
            raise ValueError("Only one of `sigmas` and `timesteps` can be passed.")
        shift, base, plan = self.config.shift, self.config.base_size, {}
        if sigmas is None and timesteps is None:
            if num_inference_steps is None:
                raise ValueError("Pass one of `num_inference_steps`, `sigmas` and `timesteps`.")
            if num_inference_steps < 1:
                raise ValueError(f"`num_inference_steps` has to be at least 1 but is {num_inference_steps}.")
            plan = self._plan(num_inference_steps)
            steps, tail = plan.get("steps", num_inference_steps), plan.get("tail")
            u = torch.linspace(1, 0 if tail is None else tail, steps + (tail is None), dtype=torch.float64)
            u = u if tail is None else torch.cat([u, u.new_zeros(1)])
            shift *= plan.get("shift", 1.0)
            if base is not None:
                shift *= max(1.0, math.sqrt((height or base) * (width or base)) / base)
        else:
            name, given, unit = "sigmas", sigmas, 1
            if timesteps is not None:
                name, given, unit = "timesteps", timesteps, self.config.num_train_timesteps
            begins = torch.as_tensor(given, dtype=torch.float64) / unit
            begins = (begins - self.t_min) / (self.t_max - self.t_min)
            if len(begins) == 0:
                raise ValueError(f"`{name}` has to hold at least one time but is empty.")
            if begins.min() < -1e-6 or begins.max() > 1 + 1e-6:  # those of float32 are rounded
                raise ValueError(
                    f"`{name}` has to be in the range from {self.t_min * unit} to {self.t_max * unit} but begins with"
                    f" {float(given[0])} and ends with {float(given[-1])}."
                )
            u = torch.cat([begins, begins.new_zeros(1)])
        u = shift * u / (1 + (shift - 1) * u)
        # float32 also on devices that have float64: the model is given these very times
        self.sigmas = (self.t_min + (self.t_max - self.t_min) * u).clamp(self.t_min, self.t_max).float()
        if not bool((self.sigmas[:-1] > self.sigmas[1:]).all()):
            raise ValueError("The times of the steps must decrease.")
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)
        self.num_inference_steps = len(self.timesteps)
        self.velocity_below = float(plan.get("velocity_below", 0.0))
        self.memory = bool(plan.get("memory", False))
        self.stochasticity = float(plan.get("stochasticity", 0.0))
        self.guidance_share = float(plan.get("guidance_share", 1.0))
        self.guided_above = float(plan.get("guided_above", 0.0))
        self._step_index = self._begin_index = None

    def _plan(self, budget: int) -> dict[str, float]:
        plans = {int(steps): plan for steps, plan in (self.config.plans or {}).items()}
        known = max((steps for steps in plans if steps <= budget), default=None)
        if known is None:
            return {}
        # between two that have plans: that of the smaller, which may be best spent on fewer steps than it has
        return {**plans[known], "steps": budget} if plans[known]["steps"] == known else plans[known]

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """
        The sample itself, for interchangeability with other schedulers.

        Args:
            sample (`torch.Tensor`): The input of the model.
            timestep (`float` or `torch.Tensor`, *optional*): Not used.
        """
        return sample

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        The point of the path at a timestep, between clean data and noise.

        Args:
            sample (`torch.Tensor`): Clean data.
            timestep (`float` or `torch.Tensor`): One, or one for each sample.
            noise (`torch.Tensor`): Of the same shape.
        """
        alpha, sigma, _, _ = self.coefficients(self._times(timestep, sample))
        return (_expand(alpha, sample) * sample.float() + _expand(sigma, sample) * noise.float()).to(sample.dtype)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that sampling begins with."""
        return float(self.coefficients(self.sigmas[:1])[1])

    def _times(self, timestep: float | torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device) / self.config.num_train_timesteps
        return times.reshape(-1).expand(len(sample))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        r_timestep: float | torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> TransitionSchedulerOutput | tuple[torch.Tensor]:
        """
        Carries a sample from `timestep` to `r_timestep` with the model's prediction for that interval.

        Args:
            model_output (`torch.Tensor`): What the model predicts for the transition.
            timestep (`float` or `torch.Tensor`): Where the sample is; one, or one for each sample.
            sample (`torch.Tensor`): The sample.
            r_timestep (`float` or `torch.Tensor`, *optional*):
                Where it is to be; by default the next time of the schedule below `timestep`.
            return_dict (`bool`, defaults to `True`): Whether to return a [`TransitionSchedulerOutput`].

        Returns:
            [`TransitionSchedulerOutput`] or `tuple`: With the sample at `r_timestep`.
        """
        begins = self.sigmas.cpu() * self.config.num_train_timesteps
        current = torch.as_tensor(timestep, dtype=torch.float32).cpu().reshape(-1)
        after = (begins[:-1, None] >= current * (1 - 1e-6)).sum(0)
        if r_timestep is None:
            r_timestep = begins[after]
        t, r = self._times(timestep, sample), self._times(r_timestep, sample)
        alpha_t, sigma_t, alpha_hat, sigma_hat = self.coefficients(t)
        alpha_r, sigma_r, _, _ = self.coefficients(r)
        determinant = alpha_t * sigma_hat - sigma_t * alpha_hat
        x, F = sample.float(), model_output.float()
        A = _expand((alpha_r * sigma_hat - sigma_r * alpha_hat) / determinant, x)
        B = _expand((sigma_r * alpha_t - alpha_r * sigma_t) / determinant, x)
        prev_sample = (A * x + B * F).to(sample.dtype)
        clean, _ = self.components(model_output, timestep, sample)
        if self._step_index is None:
            self._step_index = max(0, int(after[0]) - 1) if self._begin_index is None else self._begin_index
        self._step_index += 1
        if not return_dict:
            return (prev_sample,)
        return TransitionSchedulerOutput(prev_sample=prev_sample, pred_original_sample=clean.to(sample.dtype))

    def components(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The data and the noise that the model has in mind.

        Args:
            model_output (`torch.Tensor`): What the model predicts.
            timestep (`float` or `torch.Tensor`): Where the sample is; one, or one for each sample.
            sample (`torch.Tensor`): The sample.

        Returns:
            `tuple`: Data and noise.
        """
        times = self.coefficients(self._times(timestep, sample))
        alpha, sigma, alpha_hat, sigma_hat = (_expand(each, sample) for each in times)
        determinant, x, F = alpha * sigma_hat - sigma * alpha_hat, sample.float(), model_output.float()
        return (sigma_hat * x - sigma * F) / determinant, (alpha * F - alpha_hat * x) / determinant

    def extrapolate(
        self,
        model_output: torch.Tensor,
        timestep: float,
        r_timestep: float,
        before: tuple[tuple[torch.Tensor, torch.Tensor], float],
    ) -> torch.Tensor:
        """
        The prediction in the middle of a jump, told from that of the jump before: the two-step Adams-Bashforth method.

        Args:
            model_output (`torch.Tensor`): The velocity at `timestep`.
            timestep (`float`): Where the jump begins.
            r_timestep (`float`): Where it ends.
            before (`tuple`): The `components` of the jump before, and the timestep that it began at.
        """
        (data, noise), earlier = before
        _, _, alpha_hat, sigma_hat = (_expand(each, data) for each in self.coefficients(self._times(timestep, data)))
        then = alpha_hat * data + sigma_hat * noise
        return model_output + (timestep - r_timestep) / (2 * (earlier - timestep)) * (model_output - then)

    def renoise(self, sample: torch.Tensor, timestep: float, r_timestep: float, noise: torch.Tensor) -> torch.Tensor:
        """
        A draw of the sample at a later time of the path, given that at `timestep`.

        Args:
            sample (`torch.Tensor`): The sample at `timestep`.
            timestep (`float`): Where it is.
            r_timestep (`float`): Where it is to be, with at least as much noise.
            noise (`torch.Tensor`): Standard normal, of the same shape.
        """
        alpha, sigma, _, _ = self.coefficients(self._times(timestep, sample))
        alpha_r, sigma_r, _, _ = self.coefficients(self._times(r_timestep, sample))
        keep = alpha_r / alpha
        fresh = (sigma_r.square() - (keep * sigma).square()).clamp(min=0).sqrt()
        return (_expand(keep, sample) * sample.float() + _expand(fresh, sample) * noise.float()).to(sample.dtype)

    def __len__(self):
        return self.config.num_train_timesteps


def _expand(scalar: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return scalar.view(-1, *[1] * (like.ndim - 1))
