"""`anystep plan-steps`: for each number of steps the plan that is best on images kept for it.

The search draws with seeds, and measures against real images, that `anystep evaluate` and `anystep compare` do not use
by default, so that what they then report was not chosen on their own images.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from anystep.device import pick_precision
from anystep.environment import environment
from anystep.errors import InputError
from anystep.evaluation.evaluate import Point, check_prompts, generate_points, prompts_of
from anystep.evaluation.extractors.registry import try_extractor
from anystep.evaluation.metrics.base import (
    Direction,
    ImageFeatures,
    Replicates,
    measure,
    probability_not_worse,
    shortfall,
)
from anystep.evaluation.reference import Reference, open_reference, real_features
from anystep.evaluation.settings import Evaluation, MeasurementSettings, output_folder, step_counts
from anystep.files import HOLDER, LOCK, MARKER, replacing, write_json, write_text
from anystep.markdown import markdown_table
from anystep.pipelines.adapted import FLOW_MAP_FILE, RUN_FOLDER, FlowMapFile
from anystep.pipelines.load import BUILTIN, Model, find, load
from anystep.pipelines.scheduler import plain_plans, write_plans
from anystep.pipelines.transition import TransitionPipeline
from anystep.publishing import publishing
from anystep.sampling import StepPlan, is_guided
from anystep.transport import make_transport

KIND = "search of plans"
VALIDATION_SAMPLES = 1000
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
NEAR = 8  # above so many steps only settings next to the best are tried
BESIDE = "pixel_frechet_distance"  # that plans are chosen by in equal parts with the metric that was asked for
CONFIDENCE = 0.95  # with which a plan must be better than the one it takes the place of

Choices = Sequence[Sequence[Mapping[str, Any]]]
TAILS = [{"tail": tail} for tail in (None, 0.1, 0.15, 0.25, 0.4)]
SHIFTS = [{"shift": shift} for shift in (0.7, 1.0, 1.4, 2.0)]
EULER = [{"velocity_below": 1.0, "memory": memory} for memory in (True, False)]
VELOCITIES = [
    {"velocity_below": 0.0, "memory": False},
    *EULER,
    *({"velocity_below": below, "memory": True} for below in (0.05, 0.1, 0.2, 0.4)),
]
NOISES = [{"stochasticity": share} for share in (0.0, 0.1, 0.3)]
SHARES = [{"guidance_share": share} for share in (0.0, 0.2, 0.5, 1.0)]
ENDS = [{"guided_above": above} for above in (0.0, 0.2, 0.4, 0.6)]
# what changes a picture most comes first: the choices that follow are made on top of it
CHOICES: dict[str, Choices] = {
    "transition": (VELOCITIES, SHIFTS, TAILS, NOISES),
    "instantaneous": (EULER, SHIFTS, TAILS, NOISES),
    "consistency": (SHIFTS, TAILS, [*NOISES, {"stochasticity": 1.0}]),
}
"""By how a network is meant to be asked (`anystep.objective.presets`), the settings to search, one group at a time."""


def choices_of(sampling: str, guided: bool) -> Choices:
    """What a search tries of a network that is asked in that way, with guidance or without."""
    return (*CHOICES[sampling], *((SHARES, ENDS) if guided else ()))


@dataclass(frozen=True)
class Planned:
    """The plan of a budget, and on the validation half its figure and that of as many uniform steps."""

    budget: int
    plan: StepPlan
    figure: float
    uniform: float

    def plain(self) -> dict[str, Any]:
        return {"budget": self.budget, "plan": str(self.plan), "uniform": self.uniform, "planned": self.figure}


def plans_of(rows: Sequence[Planned]) -> dict[int, StepPlan]:
    """The plans by budget."""
    return {row.budget: row.plan for row in rows}


@dataclass(frozen=True)
class _Trials:
    """The figures of every plan that was tried, each generated and measured once."""

    measure: Callable[[StepPlan], Sequence[Replicates]]
    directions: Sequence[Direction]
    known: dict[StepPlan, Sequence[Replicates]] = field(default_factory=dict)

    def figures(self, plan: StepPlan) -> Sequence[Replicates]:
        if plan not in self.known:
            self.known[plan] = self.measure(plan)
        return self.known[plan]

    def gain(self, one: StepPlan, other: StepPlan) -> Replicates:
        """By how much the logarithm of the figures of the first plan is the better, on average."""
        pairs = zip(self.figures(one), self.figures(other), self.directions, strict=True)
        gains = [log_gain(mine, theirs, direction) for mine, theirs, direction in pairs]
        count = min(map(len, gains))  # some metrics have fewer replicates
        return torch.stack([each[:count] for each in gains]).mean(0)

    def beats(self, one: StepPlan, other: StepPlan) -> bool:
        """Whether the first plan is the better with `CONFIDENCE`."""
        gain = self.gain(one, other)
        return bool(gain[0] > 0) and probability_not_worse(torch.zeros_like(gain), gain, "higher") > CONFIDENCE

    def costs(self, one: StepPlan, other: StepPlan) -> bool:
        """Whether the first figure of the first plan is worse, or another one with `CONFIDENCE`."""
        pairs = list(zip(self.figures(other), self.figures(one), self.directions, strict=True))
        before, now, direction = pairs[0]
        worse = any(probability_not_worse(*pair) < 1 - CONFIDENCE for pair in pairs)
        return worse or bool(shortfall(now, direction)[0] > shortfall(before, direction)[0])


def search_plans(
    generate: Callable[[StepPlan], ImageFeatures],
    measure: Callable[[ImageFeatures], Sequence[Replicates]],
    budgets: Sequence[int],
    directions: Sequence[Direction],
    choices: Choices,
    uniform: Callable[[int], StepPlan] = StepPlan,
) -> list[Planned]:
    """For each budget the best plan, from the smallest budget on: a coordinate search on one set of seeds.

    One plan is better than another where the product of its figures is, so that none is bought with another. It begins
    with the better of uniform times and the settings of the budget before, and then tries the choices of one group
    after the other. A choice is taken where it is better with `CONFIDENCE`: normal, from the spread of the paired
    differences of bootstrap replicates. Of what was tried the best is taken that in the same way beats the plan of the
    budget before, without a worse first figure and without one that is worse with `CONFIDENCE`; where none is, that
    plan is kept, with its fewer steps. Beyond `NEAR` steps, a budget that comes after one which kept a plan tries no
    choices but uniform times and the same settings.

    Args:
        generate: images by a plan; always of the same seeds and prompts.
        measure: the figures of images with their replicates, of the same bootstrap weights; the first is reported.
        budgets: numbers of steps.
        directions: of each figure.
        choices: groups of settings in their order: beyond `NEAR` steps only those next to the best are tried.
        uniform: the plan without settings for a number of steps.
    """
    trials = _Trials(lambda plan: measure(generate(plan)), directions)
    rows: list[Planned] = []
    for budget in sorted(set(budgets)):
        even = uniform(budget)
        # where a budget kept the plan of a smaller one, more steps of its kind have nothing left to give
        settled = len(rows) > 1 and budget > NEAR and rows[-1].plan == rows[-2].plan
        before = rows[-1].plan if rows else None
        best = _best_of_choices(trials, even, before, () if settled else choices)
        if before is not None:
            tried = sorted((p for p in trials.known if p.steps == budget), key=lambda p: -trials.gain(p, even)[0])
            best = next((p for p in [best, *tried] if trials.beats(p, before) and not trials.costs(p, before)), before)
        rows.append(Planned(budget, best, *(trials.figures(plan)[0][0].item() for plan in (best, even))))
    return rows


def _best_of_choices(trials: _Trials, even: StepPlan, before: StepPlan | None, choices: Choices) -> StepPlan:
    """The best plan of as many steps as the uniform one, whatever the plan of the budget before was worth."""
    best, seen = even, {effect(even)}
    if before is not None:
        again = replace(before, steps=even.steps)
        if effect(again) not in seen and trials.gain(again, even)[0] > 0:
            best = again
        seen.add(effect(again))
    for group in choices:
        for other in _others(best, group, seen):
            seen.add(effect(other))
            if trials.beats(other, best):
                best = other
    trials.figures(best)
    return best


def log_gain(mine: Replicates, theirs: Replicates, direction: Direction) -> Replicates:
    """By how much the logarithm of one figure is better than that of another; where the best is 1, of how far it is."""
    tiny = torch.finfo(mine.dtype).tiny  # a distance of few images may be below 0
    if direction == "nearest 1":
        mine, theirs = shortfall(mine, direction), shortfall(theirs, direction)
    change = theirs.clamp(min=tiny).log() - mine.clamp(min=tiny).log()
    return -change if direction == "higher" else change


def _others(best: StepPlan, group: Sequence[Mapping[str, Any]], seen: set[Any]) -> Iterator[StepPlan]:
    """The plans to try in a group: all that do something else than those seen, or the nearest of them on each side."""
    plans = [replace(best, **settings) for settings in group]
    place = next((number for number, plan in enumerate(plans) if plan == best), None)
    sides = [plans] if place is None else [plans[:place][::-1], plans[place + 1 :]]
    for side in sides:
        for plan in side:
            if effect(plan) not in seen:  # which grows with what is yielded
                yield plan
                if best.steps > NEAR:
                    break


@lru_cache(1000)
def effect(plan: StepPlan) -> tuple[Any, ...]:
    """What a plan does, the same for all that do the same: times, jumps by velocity, memory, noise and guidance."""
    transport = make_transport("ot_fm")
    times = plan.times(transport).tolist()
    noise = plan.stochasticity if plan.steps > 1 else 0.0
    landings = [*(goal * (1 - noise) for goal in times[1:-1]), 0.0]
    short = [now - goal <= plan.velocity_below * (1 + 1e-5) for now, goal in zip(times, landings, strict=False)]
    remembered = plan.memory and not noise and any(map(all, pairwise(short)))
    lowest = (plan.guided_times(transport) or (0.0, 1.0))[0]
    shares = tuple(plan.guidance_share * (now >= lowest) for now in times[:-1])
    return tuple(times), tuple(short), remembered, noise, shares


def plan_model(
    evaluation: Evaluation,
    model: Model,
    reference: Reference,
    budgets: Sequence[int],
    on_plan: Callable[[StepPlan, Point], None] = lambda plan, point: None,
) -> list[Planned]:
    """`search_plans` of a model by the metrics of an evaluation, against the real images of validation.

    What is generated stays in the folder of the evaluation; `on_plan` is called with every plan that was tried.
    """
    settings = evaluation.settings
    prompts = prompts_of(model, reference, settings)
    real = real_features(evaluation, reference)
    guided = is_guided(model.pipeline.resolve_guidance(settings.guidance))

    def generate(plan: StepPlan) -> ImageFeatures:
        planned = replace(evaluation, settings=replace(settings, plan=plan))
        (point,) = generate_points(planned, model, [plan.steps], prompts)
        on_plan(plan, point)
        return point.images

    return search_plans(
        generate,
        lambda images: [measure(metric, real, images, evaluation.seed) for metric in evaluation.metrics],
        budgets,
        [metric.direction for metric in evaluation.metrics],
        choices_of(model.pipeline.config.sampling, guided),
        lambda steps: model.pipeline.plan(steps, "uniform"),
    )


@dataclass(frozen=True, kw_only=True)
class PlanRequest(MeasurementSettings):
    """The options of the command; `anystep plan-steps --help` says what they mean."""

    model: str
    budgets: Sequence[int] = BUDGETS
    samples: int = VALIDATION_SAMPLES
    metric: str = "frechet_distance"
    in_place: bool = False
    validation: bool = True


def plan_steps(request: PlanRequest) -> dict[str, Any]:
    """Search plans and keep them: a copy of the model in `out / "pipeline"`, or in the model's own folder.

    Of the file of a flow map the copy is in `out / "adapted"`.

    Returns what is in `out / "plans.json"`; {} in all processes but the first.
    """
    budgets, device = step_counts(request.budgets, "budgets"), request.begin()
    evaluation = Evaluation.open(request, device, list(dict.fromkeys([request.metric, BESIDE])))
    model = load(request.model, device, pick_precision(request.precision, device))
    place = _place(model, request.in_place)
    width, height = request.size or (model.pipeline.base_size,) * 2
    try_extractor(evaluation.extractor, width, height)
    reference = open_reference(request, (width, height), evaluation.metrics, evaluation.extractor)
    prompts = prompts_of(model, reference, request)
    check_prompts(model, prompts, width, height, budgets[-1], request.guidance)
    with output_folder(evaluation.ranks, request.out, KIND) as bar:
        task, tried, spent = bar.add_task("real images", total=None), 0, 0

        def on_plan(plan: StepPlan, point: Point) -> None:
            nonlocal tried, spent
            tried, spent = tried + 1, spent + point.nfe
            bar.update(task, description=f"{tried} plans, {spent:,} NFE an image; {plan}")

        rows = plan_model(evaluation, model, reference, budgets, on_plan)
        if not evaluation.ranks.is_main:
            return {}
        figures = _figures(evaluation, model, reference, rows)
        figures |= {"tried": tried, "nfe_per_image": spent}
        write_json(request.out / "plans.json", figures)
        write_text(request.out / "plans.md", table(figures))
        keep_plans(place, None if request.in_place else request.out, plans_of(rows))
    return figures


def _figures(evaluation: Evaluation, model: Model, reference: Reference, rows: Sequence[Planned]) -> dict[str, Any]:
    """What a search has found, and what it was made with, as plain values."""
    settings, metric = evaluation.settings, evaluation.metrics[0]
    return {
        "model": model.name,
        "metric": evaluation.metric_name(metric),
        "better": metric.direction,
        "plans": plain_plans(plans_of(rows)),
        "rows": [row.plain() for row in rows],
        "samples": settings.samples,
        "real_images": len(reference.real),
        "notes": reference.notes,
        "unused_below": len(reference.source) // 4,
        "settings": {
            "data": settings.data,
            "guidance": model.pipeline.resolve_guidance(settings.guidance),
            "extractor": evaluation.extractor.name,
            "extractor_digest": evaluation.extractor.digest,
            "seed": settings.seed,
        },
        "versions": environment(),
    }


def table(figures: Mapping[str, Any]) -> str:
    """The plans as a page to read."""
    rows = [[row["budget"], f"{row['uniform']:.4g}", f"{row['planned']:.4g}", row["plan"]] for row in figures["rows"]]
    lines = [
        f"# Plans of {figures['model']}",
        "",
        f"{figures['metric']} ({figures['better']} is better) of {figures['samples']} images against "
        f"{figures['real_images']} real ones kept for validation. {figures['tried']} plans were tried, "
        f"{figures['nfe_per_image']:,} network evaluations an image.",
        "",
        *markdown_table(["steps", "uniform", "planned", "plan"], rows, "rrrl"),
        "",
        "These figures chose the plans, and flatter them: `anystep evaluate` measures them on other images, as long as "
        f"its --samples are at most {figures['unused_below']:,}.",
        *(line for note in figures["notes"] for line in ("", note)),
        "",
    ]
    return "\n".join(lines)


def _place(model: Model, in_place: bool) -> Path:
    """The folder of a model, or the file of a flow map. Raises `InputError` where plans may not be written there."""
    found = find(model.name)
    if in_place and (model.name == BUILTIN or not Path(found).exists()):
        raise InputError(f"--in-place: model {model.name!r} is no folder of yours; without it a copy is made in --out")
    return Path(found) if Path(found).exists() else Path(TransitionPipeline.download(found))


def keep_plans(place: Path, out: Path | None, plans: Mapping[int, StepPlan]) -> None:
    """Give plans to a model, or to a copy of it in `out`, which appears whole."""
    if place.is_file():
        target = place if out is None else out / RUN_FOLDER / FLOW_MAP_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            FlowMapFile.read(place).with_plans(plans).write(part)
    elif out is None:
        write_plans(place, plans)
    else:
        with publishing(out / "pipeline", "planned model") as part:
            shutil.copytree(place, part, ignore=shutil.ignore_patterns(MARKER, LOCK, HOLDER, "*.part"))
            write_plans(part, plans)
