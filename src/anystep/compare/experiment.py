"""What a comparison file holds, and the recipe of each of its runs."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from anystep.bounds import Count, Guidance, PositiveShare, SamplingSteps, Seed, check, did_you_mean, shown
from anystep.errors import InputError
from anystep.objective.presets import OBJECTIVES
from anystep.pipelines.scheduler import Planning
from anystep.plain_yaml import parse_yaml
from anystep.training.config import Recipe
from anystep.training.plan import recipe_evaluations
from anystep.training.recipe_files import merged, set_path
from anystep.training.section import Name, Section, explain


class Comparison(Section):
    """What a comparison file holds."""

    # What all variants share; the comparison sets its run.steps and run.seed.
    recipe: Recipe = Recipe()
    # What differs in each variant, by its name: a recipe's sections, or its own seeds; the first is compared with each.
    variants: dict[Name, dict[str, Any]] = Field(
        default_factory=lambda: {preset.label: {"objective": {"kind": kind}} for kind, preset in OBJECTIVES.items()}
    )
    # Number of network evaluations that every run spends, in samples; a backward pass counts as two.
    evaluations: Count = 1_000_000
    # Seeds that every variant without its own is trained with.
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    # Numbers of sampling steps at which the trained models are measured.
    steps: tuple[SamplingSteps, ...] = Field((1, 2, 4, 8, 16, 32, 64), min_length=1)
    # Number of images that a model is measured with at each number of steps.
    samples: Count = 1000
    # Metrics of the evaluation.
    metrics: tuple[Name, ...] = (
        "frechet_distance",
        "kernel_distance",
        "pixel_frechet_distance",
        "sharpness",
        "precision",
        "coverage",
    )
    # Feature extractor of the evaluation, as in `anystep evaluate`.
    extractor: Name = "effnetlite0"
    # Guidance scale of the evaluation (1: none).
    guidance: Guidance = 1.0
    # Shares of the training, in hundredths, after which the average weights are measured too; checkpoints are kept.
    milestones: tuple[PositiveShare, ...] = ()
    # Numbers of sampling steps at the milestones.
    milestone_steps: tuple[SamplingSteps, ...] = Field((1, 4, 64), min_length=1)
    # Number of images at each milestone and number of steps.
    milestone_samples: Count = 500
    # Search plans of steps for every run, on real images that are not measured with, and use them (false: uniform).
    plans: bool = False

    @model_validator(mode="after")
    def _once_each(self) -> "Comparison":
        once = ("seeds", "steps", "milestones", "milestone_steps")
        for name, values in ((name, getattr(self, name)) for name in once):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} name one twice")
        for share in self.milestones:
            if round(100 * share) < 1 or abs(100 * share - round(100 * share)) > 1e-6:
                raise ValueError(f"milestones {share:g}: expected hundredths of the training, above 0")
        return self

    @property
    def planning(self) -> Planning:
        """What steps are spent on: without plans of this comparison, those that a run has of an earlier one are not."""
        return "model" if self.plans else "uniform"

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Raises InputError for seeds of its own that are none."""
        own = self.variants[variant].get("seeds")
        if own is None:
            return self.seeds
        name = f"variant {shown(variant)}: seeds"
        if not isinstance(own, list | tuple) or not own:
            raise InputError(f"{name} {shown(own)}: expected a list of them")
        seeds = tuple(check(name, seed, Seed) for seed in own)
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{name} {list(seeds)} name one twice")
        return seeds

    def check_seeds(self) -> None:
        """Raises InputError for two variants without a seed that both have: nothing of them could be paired."""
        for one, other in combinations(self.variants, 2):
            if not set(self.seeds_of(one)) & set(self.seeds_of(other)):
                raise InputError(
                    f"variants {shown(one)} and {shown(other)}: seeds that have none in common, expected one"
                )


class ComparedRun(NamedTuple):
    """One training run of a comparison: a variant with a seed, and its folder."""

    variant: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def variant_recipe(comparison: Comparison, name: str, seed: int) -> Recipe:
    """The recipe of one run, with as many steps as its evaluations buy."""
    base, change = comparison.recipe.model_dump(exclude_unset=True), comparison.variants[name]
    transport = change.get("transport")
    own = transport.get("name") if isinstance(transport, dict) else None  # what is no section is refused below
    if own not in (None, comparison.recipe.transport.name):
        base = {**base, "transport": {}}  # the options of one transport mean nothing, or something else, in another
    content = merged(base, {key: value for key, value in change.items() if key != "seeds"})
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"variant {shown(name)}: {explain(Recipe, error)}") from None
    if (recipe.data, recipe.model.codec) != (comparison.recipe.data, comparison.recipe.model.codec):
        raise InputError(f"variant {name!r} changes data or model.codec: a comparison has one set of data")
    cost = recipe.run.batch_size * recipe_evaluations(recipe)
    run = recipe.run.model_copy(update={"seed": seed, "steps": max(1, round(comparison.evaluations / cost))})
    return recipe.model_copy(update={"run": run})


def choose(comparison: Comparison, names: Sequence[str] | None) -> Comparison:
    """With these variants alone, in this order; with all when None. Raises `InputError` for a name that is none."""
    if names is None:
        return comparison
    if unknown := sorted(set(names) - set(comparison.variants)):
        hint = did_you_mean(unknown[0], comparison.variants)
        raise InputError(f"--only {unknown[0]!r}: {hint}expected some of {', '.join(comparison.variants)}")
    return comparison.model_copy(update={"variants": {name: comparison.variants[name] for name in names}})


def vary(comparison: Comparison, changes: Sequence[str]) -> Comparison:
    """With more variants of the first one: `objective.eps=0.001,0.02` makes two. Raises `InputError`: another form."""
    first = next(iter(comparison.variants.values()))
    variants = dict(comparison.variants)
    for change in changes:
        key, equals, values = change.partition("=")
        if not (equals and key and values):
            raise InputError(
                f"--vary {shown(change)}: expected KEY=VALUE[,VALUE...], for example objective.eps=0.001,0.02"
            )
        for value in parse_yaml(f"[{values}]", f"--vary {shown(change)}"):
            word = json.dumps(value).strip('"')
            short = f"{key.split('.')[-1]} {word}"
            variants[f"{key} {word}" if short in variants else short] = merged(first, set_path(key, value))
    return comparison.model_copy(update={"variants": variants})
