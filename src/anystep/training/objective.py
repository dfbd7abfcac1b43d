"""The objective that a recipe describes."""

from collections.abc import Callable

import torch

from anystep.errors import InputError
from anystep.models.presets import depths_of
from anystep.objective import (
    BranchVelocity,
    GuidanceCondition,
    Identity,
    Implicit,
    ModelGuidance,
    Normaliser,
    RunningMean,
    SelfConsistency,
    SelfEvaluation,
    Target,
    Terminal,
    TimeDistribution,
    TimeDraws,
    TransitionObjective,
    Uncertainty,
    Weighting,
    derivative,
)
from anystep.objective.derivatives import finest_step
from anystep.objective.evaluation import EPS
from anystep.training.config import ModelConfig, Recipe
from anystep.training.objective_config import ObjectiveConfig
from anystep.transport import make_transport

NORMALISERS: dict[str, Callable[[], Normaliser | None]] = {
    "none": lambda: None,
    "running_mean": RunningMean,
    "uncertainty": Uncertainty,
}


def make_objective(recipe: Recipe) -> TransitionObjective:
    """The objective a recipe describes, for its main phase; a normaliser of residuals is new."""
    config = recipe.objective
    times = [
        None if each is None else TimeDistribution(each.mean, each.std, each.uniform)
        for each in (config.diffusion_times, config.later_times, config.earlier_times)
    ]
    normaliser = NORMALISERS[config.normalise]()
    return TransitionObjective(
        transport=make_transport(recipe.transport.name, **recipe.transport.options),
        draws=TimeDraws(config.diffusion_share, config.consistency_share, *times),
        target=make_target(config),
        weighting=Weighting(config.weight, config.tangent, float(config.adaptive), normaliser),
        direction=config.direction,
        guidance=make_guidance(config),
        alignment=1.0 if recipe.alignment is None else recipe.alignment.coefficient,
        ema_teacher=config.ema_teacher,
        velocity=make_velocity(config, recipe.model),
    )


def check_differences(objective: TransitionObjective, config: ObjectiveConfig, precision: torch.dtype) -> None:
    """Raise `InputError` where the finite difference of the target would be rounding in this precision."""
    learns_pairs = config.target == "identity" and config.diffusion_share < 1
    if not learns_pairs or config.derivative == "forward_mode" or config.eps is not None:
        return
    transport = objective.transport
    middle = torch.tensor([(transport.t_min + transport.t_max) / 2])
    if precision != torch.float32 and finest_step(transport, middle).item() < EPS[torch.float32]:
        raise InputError(
            f"objective.derivative {config.derivative!r} in bfloat16: transport {transport.name!r} needs steps that "
            "are lost in its rounding: set run.precision float32, or objective.derivative forward_mode"
        )


def make_velocity(config: ObjectiveConfig, model: ModelConfig) -> BranchVelocity | None:
    """How the velocity is learned where t > r, by a network with branches."""
    depth, branch = depths_of(model.preset, model.options)
    return BranchVelocity(config.velocity_weight, branch / depth) if branch and config.velocity_weight else None


def make_target(config: ObjectiveConfig) -> Target:
    """What is learned where t > r."""
    match config.target:
        case "identity":
            return Identity(derivative(config.derivative, config.eps), config.along, config.velocity_share)
        case "self_consistency":
            return SelfConsistency()
        case "implicit":
            return Implicit(*config.ratio, config.ratio_falls)
        case "terminal":
            return Terminal(config.eps)
        case "self_evaluation":
            return SelfEvaluation()


def make_guidance(config: ObjectiveConfig) -> ModelGuidance | GuidanceCondition | None:
    """What guides the target."""
    if config.guidance is not None:
        return ModelGuidance(**config.guidance)
    if (condition := config.guidance_condition) is None:
        return None
    return GuidanceCondition(condition.w_max, *(condition.interval or ()))
