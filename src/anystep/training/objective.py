"""The objective that a recipe describes."""

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
from anystep.training.config import ModelConfig, Recipe
from anystep.training.objective_config import ObjectiveConfig, TimeConfig
from anystep.transport import make_transport


def make_objective(recipe: Recipe) -> TransitionObjective:
    """The objective a recipe describes, for its main phase."""
    config = recipe.objective
    try:
        transport = make_transport(recipe.transport.name, **recipe.transport.options)
    except ValueError as error:
        raise InputError(str(error)) from None
    return TransitionObjective(
        transport=transport,
        draws=TimeDraws(
            config.diffusion_share,
            config.consistency_share,
            *map(make_times, (config.diffusion_times, config.later_times, config.earlier_times)),
        ),
        target=make_target(config),
        weighting=Weighting(config.weight, config.tangent, float(config.adaptive), make_normaliser(config)),
        direction=config.direction,
        guidance=make_guidance(config),
        alignment=1.0 if recipe.alignment is None else recipe.alignment.coefficient,
        ema_teacher=config.ema_teacher,
        velocity=make_velocity(config, recipe.model),
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
            return Implicit(*config.ratio)
        case "terminal":
            return Terminal(config.eps)
        case "self_evaluation":
            return SelfEvaluation()


def make_guidance(config: ObjectiveConfig) -> ModelGuidance | GuidanceCondition | None:
    """What guides the target."""
    if config.guidance is not None:
        return ModelGuidance(**config.guidance)
    if config.guidance_condition is None:
        return None
    interval = config.guidance_condition.interval
    return GuidanceCondition(config.guidance_condition.w_max, *(() if interval is None else interval))


def make_normaliser(config: ObjectiveConfig) -> Normaliser | None:
    """What evens out the residuals of different times, new."""
    match config.normalise:
        case "running_mean":
            return RunningMean()
        case "uncertainty":
            return Uncertainty()
        case "none":
            return None


def make_times(config: TimeConfig | None) -> TimeDistribution | None:
    """A distribution of times, where one is given."""
    return None if config is None else TimeDistribution(config.mean, config.std, config.uniform)
