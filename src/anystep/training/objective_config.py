"""The `objective` section of a recipe."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import ModelWrapValidatorHandler, field_validator, model_validator

from anystep.bounds import Coefficient, PositiveShare, Real, Share, Time
from anystep.objective.derivatives import DerivativeKind
from anystep.objective.presets import OBJECTIVES, ObjectiveKind
from anystep.objective.weights import WeightKind
from anystep.training.section import Section


class TimeConfig(Section):
    """A distribution of training times: `anystep.objective.TimeDistribution`."""

    # Mean of the normal variable that is mapped to a time.
    mean: Annotated[float, Ge(-100), Le(100)] = -0.4
    # Standard deviation of the normal variable that is mapped to a time.
    std: Annotated[float, Gt(0), Le(100)] = 1.2
    # Share of the times that are drawn uniformly instead.
    uniform: Share = 0.0


class GuidanceConditionConfig(Section):
    """Guidance of any scale up to `w_max`, which the network is told: `anystep.objective.GuidanceCondition`."""

    # Largest guidance scale; scales from 1 to this are trained.
    w_max: Annotated[float, Gt(1), Le(100)] = 8.0
    # Closed interval of t in which guidance acts (null: everywhere).
    interval: tuple[Time, Time] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "GuidanceConditionConfig":
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"interval {list(self.interval)}: expected the lower time first")
        return self


class ObjectiveConfig(Section):
    """`kind` sets what is not given here to the values of that objective in `anystep.objective.presets`."""

    # Published objective that sets the defaults of this section.
    kind: ObjectiveKind = "transition"
    # Target of the network where t > r.
    target: Literal["identity", "self_consistency", "implicit", "terminal", "self_evaluation"] = "identity"
    # Estimator of df/dt, for target identity.
    derivative: DerivativeKind = "central"
    # Trajectory of the derivative: the path of data and noise, or the network's velocity.
    along: Literal["path", "velocity"] = "path"
    # Share of the target F that the network's own velocity replaces.
    velocity_share: Share = 0.0
    # Half the width of the finite difference, or the whole width for target terminal (null: chosen by the method).
    eps: PositiveShare | None = None
    # For target implicit, the ratio of the intermediate step at the start and at the end of the run.
    ratio: tuple[PositiveShare, PositiveShare] = (0.5, 0.005)
    # Whether that ratio falls along a logistic curve of its logarithm, or of itself.
    ratio_falls: Literal["logarithmic", "linear"] = "logarithmic"
    # Take velocities in targets from the first EMA network instead of the trained one.
    ema_teacher: bool = False
    # Share of the samples with t = r.
    diffusion_share: Share = 0.5
    # Share of the samples with r at the data.
    consistency_share: Share = 0.1
    # Distribution of t where t = r (null: the larger of two draws of the transport's own).
    diffusion_times: TimeConfig | None = None
    # Distribution of the first of the two draws of which the larger is t and the smaller r (null: the transport's).
    later_times: TimeConfig | None = None
    # Distribution of the second of those two draws (null: the transport's).
    earlier_times: TimeConfig | None = None
    # Loss weight w(t, r) of the interval.
    weight: WeightKind = "sqrt"
    # Measure the interval in the tangent of t and r in the loss weight.
    tangent: bool = True
    # Power of its own residual that each sample's loss is divided by (true: 1, false: 0).
    adaptive: Share | bool = 1.0
    # Residuals are divided by their running mean at (t, r) (with adaptive 0), or by a learned uncertainty (below 1).
    normalise: Literal["none", "running_mean", "uncertainty"] = "none"
    # Add the cosine distance of prediction and target to the squared error.
    direction: bool = True
    # Loss weight of the velocity where t > r, for a network with branches.
    velocity_weight: Coefficient = 1.0
    # Share of the run, at its start, in which every sample has t = r.
    diffusion_phase: Share = 0.0
    # Model guidance in the target, from the EMA network: w_gt, w_cond, start and end (null: none).
    guidance: dict[Literal["w_gt", "w_cond", "start", "end"], Real] | None = None
    # Guidance of every scale in one network, which is given the scale (null: none).
    guidance_condition: GuidanceConditionConfig | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the target is guided."""
        return self.guidance is not None or self.guidance_condition is not None

    @model_validator(mode="after")
    def _goes_together(self) -> "ObjectiveConfig":
        if self.guidance is not None and self.guidance_condition is not None:
            raise ValueError("guidance and guidance_condition both guide the target: set one of them")
        shares = self.diffusion_share + self.consistency_share
        if self.diffusion_share < 1 and shares > 1 + 1e-9:  # where all samples are t = r, nothing else is asked for
            raise ValueError(
                f"diffusion_share {self.diffusion_share:g} and consistency_share {self.consistency_share:g} are shares "
                f"of the same samples: expected at most 1 together, not {shares:g}"
            )
        if self.target == "self_evaluation" and self.is_guided:
            raise ValueError("target self_evaluation compares the condition with none itself: set no guidance")
        if self.normalise == "running_mean" and self.adaptive != 0:
            raise ValueError(
                f"normalise running_mean has log(1 + l / m) in place of an adaptive power: set adaptive 0, not "
                f"{self.adaptive:g}"
            )
        if self.normalise == "uncertainty" and self.adaptive == 1:
            raise ValueError("normalise uncertainty has nothing to learn where adaptive is 1: set it below 1")
        return self

    @field_validator("adaptive", mode="before")
    @classmethod
    def _power(cls, value: Any) -> Any:
        return float(value) if isinstance(value, bool) else value

    @model_validator(mode="wrap")
    @classmethod
    def _fill(cls, given: Any, validate: ModelWrapValidatorHandler["ObjectiveConfig"]) -> "ObjectiveConfig":
        kind = given.get("kind") if isinstance(given, dict) else None
        if not isinstance(kind, str) or kind not in OBJECTIVES:
            return validate(given)
        config = validate({**OBJECTIVES[kind].options, **given})
        # what the kind has set was not given: another kind sets it anew
        object.__setattr__(config, "__pydantic_fields_set__", set(given))
        return config


SET_BY_KINDS = {"kind"}.union(*(preset.options for preset in OBJECTIVES.values()))


def check_guidance(recipe: Any) -> None:
    """Raise `ValueError` where the network lacks an input that guidance needs, or where nothing trains it."""
    objective, model, adapt = recipe.objective, recipe.model, recipe.adapt
    conditioned = objective.guidance_condition is not None
    embedded = model.options.get("guidance_embed") if adapt is None else adapt.guidance_embed
    if conditioned and not embedded:
        raise ValueError(
            "objective.guidance_condition needs a network that is given the scale: model.options.guidance_embed, or "
            "adapt.guidance_embed"
        )
    ours_adapted = recipe.lora is not None and adapt is None  # its model has learned what its scale means
    if embedded and not conditioned and not ours_adapted:
        raise ValueError("guidance_embed is learned by objective.guidance_condition, which is null")
    asking = {
        "objective.guidance": objective.guidance is not None,
        "objective.guidance_condition": conditioned,
        "objective.target self_evaluation": objective.target == "self_evaluation",
        # pipelines that are adapted know the empty caption, and some are told the scale
        f"guidance {recipe.guidance:g}": recipe.guidance > 1 and not embedded and adapt is None,
    }
    asked = next((name for name, asks in asking.items() if asks), None)
    # a model that an adapter is for has learned the empty condition
    if asked is not None and not recipe.condition_dropout and recipe.lora is None:
        raise ValueError(f"{asked} needs the empty condition: set condition_dropout above 0{_or_without(asked)}")
    if asked is None and recipe.condition_dropout:
        asked = f"condition_dropout {recipe.condition_dropout:g}"
    if asked is not None and _lacks_empty_class(model):
        raise ValueError(
            f"{asked} needs an empty class: set model.options.class_dropout_prob above 0{_or_without(asked)}"
        )


def _or_without(asked: str) -> str:
    name = asked.split()[0]
    return {"guidance": ", or guidance 1", "condition_dropout": ", or condition_dropout 0"}.get(name, "")


def _lacks_empty_class(model: Any) -> bool:
    if model.options.get("class_dropout_prob", 1):
        return False
    from anystep.models.presets import PRESETS

    return {**PRESETS.get(model.preset, {}), **model.options}.get("text_width") is None
