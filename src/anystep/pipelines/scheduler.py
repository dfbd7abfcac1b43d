"""The any-step schedule, its plans and the transition as a diffusers scheduler."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin, SchedulerMixin
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

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: Any = None,
        height: int | None = None,
        width: int | None = None,
        plan: Planning | None = None,
    ) -> None:
        """Set the times of so many steps as they are planned; a plan may make fewer steps."""
        steps = bounds.check("num_inference_steps", num_inference_steps, bounds.SamplingSteps)
        self.sigmas = self.times(steps, height, width, plan=plan)
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)
        self.num_inference_steps = len(self.timesteps)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, r_timestep: Any = None, return_dict: bool = True
    ) -> TransitionSchedulerOutput | tuple[Tensor]:
        """Carry a sample from `timestep` to `r_timestep`: numbers, or tensors with one time a sample.

        Without `r_timestep` it is carried to the next time of the schedule below `timestep`.
        """
        if r_timestep is None:
            times = self.sigmas * self.config.num_train_timesteps
            current = torch.as_tensor(timestep, dtype=torch.float32).cpu().reshape(-1)
            # relative, as float32 is: times of edm and ve reach 100,000
            r_timestep = times[(times[:-1, None] >= current * (1 - 1e-6)).sum(0)]
        t, r = (
            (torch.as_tensor(time, dtype=torch.float32, device=sample.device) / self.config.num_train_timesteps)
            .reshape(-1)
            .expand(len(sample))
            for time in (timestep, r_timestep)
        )
        previous = self.transport.transition(sample.float(), model_output.float(), t, r).to(sample.dtype)
        return TransitionSchedulerOutput(prev_sample=previous) if return_dict else (previous,)


def parse_plans(plans: Any) -> dict[int, StepPlan]:
    """Read plans by their budgets from plain values.

    Raises:
        InputError: one line that names the budget, the field and what was expected.
    """
    if not isinstance(plans, Mapping | None) or len(plans or ()) > MAX_PLANS:
        raise InputError(f"plans {bounds.shown(plans)}: expected the fields of a plan by numbers of steps")
    parsed = {}
    for key, fields in (plans or {}).items():
        text = str(key)
        budget = bounds.check("plans: a number of steps", int(text) if text.isdecimal() else key, bounds.SamplingSteps)
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
