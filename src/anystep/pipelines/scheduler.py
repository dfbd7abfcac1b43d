"""The any-step schedule, its plans and the transition as a diffusers scheduler."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin, FlowMapEulerDiscreteScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from anystep import bounds
from anystep.errors import InputError
from anystep.files import read_json, write_json
from anystep.sampling import StepPlan, resolution_shift
from anystep.transport import make_transport

Planning = Literal["model", "uniform"]
MAX_PLANS = 1000
MAX_STEPS = 10_000


@dataclass
class TransitionSchedulerOutput(BaseOutput):
    """`prev_sample` is the sample at `r_timestep`."""

    prev_sample: Tensor


class TransitionScheduler(SchedulerMixin, ConfigMixin):
    """Times and transitions of a transport, with the methods of `FlowMapEulerDiscreteScheduler`.

    For `ot_fm` the two are interchangeable; this one also serves the other transports and a time for every sample.
    A timestep is `num_train_timesteps` times t.

    Args:
        transport, transport_options: name and options of the transport, as `make_transport` takes them.
        shift: shift of the schedule at the base size and below.
        base_size: side in pixels of the training base; larger areas shift the schedule further. None: no area does.
        plans: a dict: by a number of steps, the fields of the `anystep.sampling.StepPlan` that is best for it (`anystep
            plan-steps`). None: all times are uniform.

    What a plan says of times is done here; velocities, memory and stochasticity are the pipeline's.
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
        plans: Any = None,
    ) -> None:
        if not isinstance(transport_options, dict | None):
            raise InputError(f"transport_options {bounds.shown(transport_options)}: expected numbers by name")
        self.transport = make_transport(transport, **(transport_options or {}))
        bounds.check("shift", shift, bounds.PositiveCoefficient)
        if base_size is not None:
            bounds.check("base_size", base_size, bounds.Side)
        self.plans = parse_plans(plans)
        if plans is not None:
            self.register_to_config(plans=plain_plans(self.plans))
        steps = bounds.check("num_train_timesteps", num_train_timesteps, bounds.SamplingSteps)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self.set_timesteps(steps, plan="uniform")

    def plan(self, budget: int, plan: Any = None) -> StepPlan | None:
        """The plan of a budget of steps: a StepPlan that is given, or by default the model's own plan.

        None stands for uniform times: the budget has no plan, or `plan` is `uniform`.

        A budget between two that have plans is planned as the smaller of them, with steps of its own number; but where
        that one is best spent on fewer steps, so is this.

        Raises:
            InputError: no plan, or one of more steps than the budget.
        """
        if isinstance(plan, StepPlan):
            if plan.steps > budget:
                raise InputError(f"plan {plan.plain()}: expected at most the {budget} steps that are asked for")
            return plan
        if plan not in (None, *get_args(Planning)):
            raise InputError(f"plan {bounds.shown(plan)}: expected a StepPlan, {' or '.join(get_args(Planning))}")
        known = max((each for each in self.plans if each <= budget), default=None)
        if plan == "uniform" or known is None:
            return None
        found = self.plans[known]
        return replace(found, steps=budget) if found.steps == known else found

    def times(
        self,
        steps: int | StepPlan,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        plan: Planning | None = None,
    ) -> Tensor:
        """Decreasing times t for an image of `height` x `width` pixels, beginning at the share `strength` of them.

        Args:
            steps: a plan, or a number of steps that is planned as `plan` says.
        """
        base, shift = self.config.base_size, self.config.shift
        if base is not None:
            shift *= resolution_shift(height or base, width or base, base)
        made = steps if isinstance(steps, StepPlan) else self.plan(steps, plan) or StepPlan(steps)
        return made.times(self.transport, shift, strength)

    def given_times(self, sigmas: Any = None, timesteps: Any = None) -> Tensor:
        """Times that begin each step, given as t or as timesteps, with `shift` on top; the last step ends at t_min.

        Raises:
            InputError: both are given, or times that do not decrease within those of the transport.
        """
        if (sigmas is None) == (timesteps is None):
            raise InputError("sigmas and timesteps: give one of them")
        name, given = ("sigmas", sigmas) if timesteps is None else ("timesteps", timesteps)
        scale, low, high = 1 if timesteps is None else self.config.num_train_timesteps, *self.time_range
        span = f"from {high * scale:g} and stay above {low * scale:g}"
        wanted = f"{name} {bounds.shown(given)}: expected numbers that decrease {span}"
        try:
            times = torch.as_tensor(given, dtype=torch.float64, device="cpu") / scale
        except (TypeError, ValueError, RuntimeError):
            raise InputError(wanted) from None
        if times.ndim != 1 or not 1 <= len(times) <= MAX_STEPS or not bool((times <= high * (1 + 1e-6)).all()):
            raise InputError(wanted)
        times = torch.cat([times.clamp(max=high), times.new_full((1,), low)])
        if not bool((times[:-1] > times[1:]).all()):
            raise InputError(wanted)
        return self.transport.shift(times, self.config.shift).float()

    @property
    def time_range(self) -> tuple[float, float]:
        """The times of data and of noise."""
        return self.transport.t_min, self.transport.t_max

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        height: int | None = None,
        width: int | None = None,
        plan: Planning | None = None,
    ) -> None:
        """Set the times of so many steps as they are planned (a plan may make fewer), or of steps that are given.

        Args:
            sigmas, timesteps: where each step begins, as `given_times` takes them.

        Raises:
            InputError: neither a number of steps nor times, or numbers of both that differ.
        """
        if sigmas is not None or timesteps is not None:
            self.sigmas = self.given_times(sigmas, timesteps)
            if num_inference_steps not in (None, len(self.sigmas) - 1):
                given = len(self.sigmas) - 1
                raise InputError(f"num_inference_steps {bounds.shown(num_inference_steps)}: {given} times are given")
        else:
            steps = bounds.check("num_inference_steps", num_inference_steps, bounds.SamplingSteps)
            self.sigmas = self.times(steps, height, width, plan=plan)
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)
        self.num_inference_steps = len(self.timesteps)
        self._step_index = self._begin_index = None

    @property
    def step_index(self) -> int | None:
        """How many steps of the schedule are done; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The step of the schedule that was set to be the first."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say which step of the schedule comes first, as `step_index` counts; `set_timesteps` forgets it."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: networks are given it as it is."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """The point of the path at a timestep, between clean data and noise: where image to image begins."""
        t = self._times_of(timestep, sample)
        return self.transport.interpolate(sample.float(), noise.float(), t).to(sample.dtype)

    def _times_of(self, timestep: Any, sample: Tensor) -> Tensor:
        """Times t, one a sample."""
        times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device) / self.config.num_train_timesteps
        return times.reshape(-1).expand(len(sample))

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, r_timestep: Any = None, return_dict: bool = True
    ) -> TransitionSchedulerOutput | tuple[Tensor]:
        """Carry a sample from `timestep` to `r_timestep`: numbers, or tensors with one time a sample.

        Without `r_timestep` it is carried to the next time of the schedule below `timestep`.
        """
        current = torch.as_tensor(timestep, dtype=torch.float32, device="cpu").reshape(-1)
        times = (self.sigmas * self.config.num_train_timesteps).cpu()
        # relative, as float32 is: times of edm and ve reach 100,000
        after = (times[:-1, None] >= current * (1 - 1e-6)).sum(0)
        r_timestep = times[after] if r_timestep is None else r_timestep
        t, r = (self._times_of(each, sample) for each in (timestep, r_timestep))
        previous = self.transport.transition(sample.float(), model_output.float(), t, r).to(sample.dtype)
        if self._step_index is None:
            self._step_index = max(0, int(after[0]) - 1) if self._begin_index is None else self._begin_index
        self._step_index += 1
        return TransitionSchedulerOutput(prev_sample=previous) if return_dict else (previous,)


def transition_scheduler(scheduler: Any) -> TransitionScheduler:
    """A scheduler as the pipeline reads it: its times and its transport.

    `FlowMapEulerDiscreteScheduler` makes the steps of `ot_fm`; what it was made from with `from_config` is kept.

    Raises:
        InputError: one whose steps cannot be told where to end.
    """
    if isinstance(scheduler, TransitionScheduler):
        return scheduler
    if not isinstance(scheduler, FlowMapEulerDiscreteScheduler):
        raise InputError(
            f"scheduler {type(scheduler).__name__}: its steps are not told the time they go to, which a transition "
            "model must be; expected a TransitionScheduler or a FlowMapEulerDiscreteScheduler"
        )
    return TransitionScheduler.from_config(scheduler.config)


def parse_plans(plans: Any) -> dict[int, StepPlan]:
    """Read plans by their budgets from plain values.

    Raises:
        InputError: one line that names the budget, the field and what was expected.
    """
    if not isinstance(plans, Mapping | None) or len(plans or ()) > MAX_PLANS:
        raise InputError(f"plans {bounds.shown(plans)}: expected the fields of a plan by numbers of steps")
    parsed: dict[int, StepPlan] = {}
    for key, fields in (plans or {}).items():
        text = str(key)
        number = int(text) if text.isascii() and text.isdecimal() else key
        budget = bounds.check("plans: a number of steps", number, bounds.SamplingSteps)
        if budget in parsed:
            raise InputError(f"plans {bounds.shown(text)}: there is another plan of {budget} steps, keep one")
        plan = fields if isinstance(fields, StepPlan) else StepPlan.parse(f"plans.{budget}", fields)
        if plan.steps > budget:
            raise InputError(f"plans.{budget}.steps {plan.steps}: expected at most {budget}")
        parsed[budget] = plan
    return dict(sorted(parsed.items()))


def plain_plans(plans: Mapping[int, StepPlan]) -> dict[str, dict[str, Any]]:
    """The plain values of plans, as JSON holds them and `parse_plans` reads them."""
    return {str(budget): plan.plain() for budget, plan in plans.items()}


def write_plans(folder: Path, plans: Mapping[int, StepPlan]) -> None:
    """Put plans into the scheduler's config of a model's folder, in place of those that were there.

    Raises:
        InputError: it holds no scheduler's config that can be read.
    """
    path = folder / "scheduler" / SchedulerMixin.config_name
    write_json(path, {**read_json(path), "plans": plain_plans(plans)})


TransitionScheduler.__module__ = "anystep"
