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
from jaxtyping import Float
from torch import Tensor, nn

from anystep.bounds import BatchSize, Count, SamplingSteps, Seed, Threads, check
from anystep.console import progress_bar
from anystep.data.sources import open_source
from anystep.device import pick_device
from anystep.environment import environment
from anystep.errors import InputError
from anystep.evaluation.evaluate import VALIDATION_SEED, Evaluation, Point, check_prompts, generate_points, observe_real
from anystep.evaluation.extractors.registry import FeatureExtractor, load_extractor, try_extractor
from anystep.evaluation.metrics.base import Better, Observed, measure, probability_not_worse, shortfall
from anystep.evaluation.metrics.registry import check_measurable, choose_metrics
from anystep.evaluation.reference import Reference
from anystep.files import HOLDER, LOCK, MARKER, publishing, remove_parts, write_json, write_text
from anystep.pipelines.load import BUILTIN, Model, find, load
from anystep.pipelines.scheduler import plain_plans, write_plans
from anystep.pipelines.transition import TransitionPipeline
from anystep.ranks import Ranks
from anystep.sampling import StepPlan
from anystep.transport import make_transport

KIND = "search of plans"
VALIDATION_SAMPLES = 1000
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
NEAR = 8  # above so many steps only settings next to the best are tried
BESIDE = "pixel_frechet_distance"  # that plans are chosen by in equal parts with the metric that was asked for
CONFIDENCE = 0.95  # with which a plan must be better than the one it takes the place of

Replicates = Float[Tensor, " replicates"]
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
# what changes a picture most comes first: the choices that follow are made on top of it
CHOICES: dict[str, Choices] = {
    "transition": (VELOCITIES, SHIFTS, TAILS, NOISES),
    "instantaneous": (EULER, SHIFTS, TAILS, NOISES),
    "consistency": (SHIFTS, TAILS, [*NOISES, {"stochasticity": 1.0}]),
}
"""By how a network is meant to be asked (`anystep.objective.presets`), the settings to search, one group at a time."""


@dataclass(frozen=True)
class Planned:
    """The plan of a budget, and on the validation half its figure and that of as many uniform steps."""

    budget: int
    plan: StepPlan
    figure: float
    uniform: float


@dataclass(frozen=True)
class Search:
    """What a search found: `rows` by budget, after as many `evaluations` an image, a guided step counted once."""

    rows: list[Planned] = field(default_factory=list)
    evaluations: int = 0

    @property
    def plans(self) -> dict[int, StepPlan]:
        return {row.budget: row.plan for row in self.rows}

    def told(self) -> list[dict[str, Any]]:
        """As plain values, a row a budget."""
        return [
            {"budget": row.budget, "plan": str(row.plan), "uniform": row.uniform, "planned": row.figure}
            for row in self.rows
        ]


def search_plans(
    draw: Callable[[StepPlan], Observed],
    measured: Callable[[Observed], Sequence[Replicates]],
    budgets: Sequence[int],
    better: Sequence[Better],
    choices: Choices,
    uniform: Callable[[int], StepPlan] = StepPlan,
) -> Search:
    """For each budget the best plan, from the smallest budget on: a coordinate search on one set of seeds.

    One plan is better than another where the product of its figures is, so that none is bought with another. It begins
    with the better of uniform times and the settings of the budget before, and then tries the choices of one group
    after the other. A choice is taken where it is better with `CONFIDENCE`: normal, from the spread of the paired
    differences of bootstrap replicates. Of what was tried the best is taken that in the same way beats the plan of the
    budget before, without a worse first figure and without one that is worse with `CONFIDENCE`; where none is, that
    plan is kept, with its fewer steps. Beyond `NEAR` steps, a budget that comes after one which kept a plan tries no
    choices but uniform times and the same settings.

    Args:
        draw: images by a plan; always of the same seeds and prompts.
        measured: the figures of images, each with its replicates, always of the same redraws
            (`evaluation.metrics.base`). The first is reported.
        budgets: numbers of steps.
        better: of each figure.
        choices: groups of settings in their order: beyond `NEAR` steps only those next to the best are tried.
        uniform: the plan without settings for a number of steps.
    """
    known: dict[StepPlan, Sequence[Replicates]] = {}

    def look(plan: StepPlan) -> Sequence[Replicates]:
        if plan not in known:
            known[plan] = measured(draw(plan))
        return known[plan]

    def gain(one: StepPlan, other: StepPlan) -> Replicates:
        """By how much the logarithm of the figures of the first is the better, on average."""
        pairs = zip(look(one), look(other), better, strict=True)
        return torch.stack([log_gain(mine, theirs, kind) for mine, theirs, kind in pairs]).mean(0)

    def beats(one: StepPlan, other: StepPlan) -> bool:
        change = gain(one, other)
        return bool(change[0] > 0) and probability_not_worse(torch.zeros_like(change), change, "higher") > CONFIDENCE

    def costs(one: StepPlan, other: StepPlan) -> bool:
        """Whether the first figure of the first is worse, or another one with `CONFIDENCE`."""
        pairs = list(zip(look(other), look(one), better, strict=True))
        before, now, kind = pairs[0]
        worse = any(probability_not_worse(*pair) < 1 - CONFIDENCE for pair in pairs)
        return worse or bool(shortfall(now, kind)[0] > shortfall(before, kind)[0])

    rows: list[Planned] = []
    for budget in sorted(set(budgets)):
        even = best = uniform(budget)
        seen = {effect(even)}
        if rows:
            again = replace(rows[-1].plan, steps=budget)
            if effect(again) not in seen and gain(again, even)[0] > 0:
                best = again
            seen.add(effect(again))
        # where a budget kept the plan of a smaller one, more steps of its kind have nothing left to give
        settled = len(rows) > 1 and budget > NEAR and rows[-1].plan == rows[-2].plan
        for group in () if settled else choices:
            for other in _others(best, group, seen):
                seen.add(effect(other))
                if beats(other, best):
                    best = other
        look(best)
        if rows:
            before = rows[-1].plan
            tried = [best, *sorted((p for p in known if p.steps == budget), key=lambda p: -gain(p, even)[0])]
            best = next((p for p in tried if beats(p, before) and not costs(p, before)), before)
        rows.append(Planned(budget, best, look(best)[0][0].item(), look(even)[0][0].item()))
    return Search(rows, sum(plan.steps for plan in known))


def log_gain(mine: Replicates, theirs: Replicates, better: Better) -> Replicates:
    """By how much the logarithm of one figure is better than that of another; where the best is 1, of how far it is."""
    tiny = torch.finfo(mine.dtype).tiny  # a distance of few images may be below 0
    if better == "nearest 1":
        mine, theirs = shortfall(mine, better), shortfall(theirs, better)
    change = theirs.clamp(min=tiny).log() - mine.clamp(min=tiny).log()
    return -change if better == "higher" else change


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
    """What a plan does, the same for all that do the same: times, jumps by velocity, memory and noise that count."""
    times = plan.times(make_transport("ot_fm")).tolist()
    noise = plan.stochasticity if plan.steps > 1 else 0.0
    landings = [*(goal * (1 - noise) for goal in times[1:-1]), 0.0]
    short = [now - goal <= plan.velocity_below * (1 + 1e-5) for now, goal in zip(times, landings, strict=False)]
    remembered = plan.memory and not noise and any(map(all, pairwise(short)))
    return tuple(times), tuple(short), remembered, noise


def plan_model(
    evaluation: Evaluation,
    model: Model,
    reference: Reference,
    budgets: Sequence[int],
    size: tuple[int, int] | None = None,
    guidance: float | None = None,
    on_drawn: Callable[[StepPlan, Point], None] = lambda plan, point: None,
) -> Search:
    """`search_plans` of a model by the metrics of an evaluation; what is drawn stays in its folder.

    Args:
        evaluation: its seed is of the first image, and of the redraws.
        reference: the real images of validation.
    """
    prompts, metrics = reference.prompts(evaluation.samples, 0), evaluation.metrics
    real = observe_real(evaluation, reference)

    def draw(plan: StepPlan) -> Observed:
        (point,) = generate_points(evaluation, model, [plan.steps], prompts, size, guidance, plan)
        on_drawn(plan, point)
        return point.observed

    return search_plans(
        draw,
        lambda made: [measure(metric, real, made, evaluation.seed) for metric in metrics],
        budgets,
        [metric.better for metric in metrics],
        CHOICES[model.pipeline.config.sampling],
        lambda steps: model.pipeline.plan(steps, "uniform"),
    )


@dataclass(frozen=True)
class PlanRequest:
    """The options of the command; `anystep plan-steps --help` says what they mean."""

    out: Path
    model: str
    data: str = "builtin"
    budgets: Sequence[int] = BUDGETS
    samples: int = VALIDATION_SAMPLES
    metric: str = "frechet_distance"
    extractor: str | nn.Module | FeatureExtractor = "effnetlite0"
    guidance: float | None = None
    seed: int = 0
    in_place: bool = False
    allow_code: bool = False
    batch: int = 50
    threads: int = 1
    device: str = "auto"


def plan_steps(request: PlanRequest) -> dict[str, Any]:
    """Search plans and keep them: a copy of the model in `out / "pipeline"`, or in the model's own folder.

    Returns what is in `out / "plans.json"`; {} in all processes but the first.
    """
    torch.set_num_threads(check("threads", request.threads, Threads))
    budgets = sorted({check("budgets", budget, SamplingSteps) for budget in request.budgets})
    if not budgets:
        raise InputError("no budgets: expected at least one number of steps")
    for name, kind in (("seed", Seed), ("batch", BatchSize), ("samples", Count)):
        check(name, getattr(request, name), kind)
    device, ranks = pick_device(request.device), Ranks()
    extractor = load_extractor(request.extractor, device if device.type == "cuda" else "cpu", request.allow_code)
    metrics = choose_metrics(list(dict.fromkeys([request.metric, BESIDE])))
    metric = metrics[0]
    check_measurable(metrics, extractor, request.samples)
    model = load(request.model, device)
    folder = _folder(model, request.in_place)
    side = model.pipeline.base_size
    try_extractor(extractor, side, side)
    options = {"vocabulary": "everyday", "split": "train"} if request.data == "builtin" else {}
    reference = Reference.draw(open_source(request.data, side, **options), side, request.samples, 0, "validation")
    try:
        check_measurable(metrics, extractor, len(reference.real))
    except InputError as error:
        raise InputError(
            f"data {request.data!r} has {len(reference.source)} images, a quarter for each side of validation: {error}"
        ) from None
    check_prompts(model, reference.prompts(request.samples, 0), side, side, budgets[-1], request.guidance)

    with ranks.claimed(request.out, KIND), progress_bar(ranks.is_main) as bar:
        ranks.on_main(lambda: remove_parts(request.out))
        task, spent = bar.add_task("real images", total=None), {"nfe": 0, "plans": 0}

        def on_drawn(plan: StepPlan, point: Point) -> None:
            spent["nfe"], spent["plans"] = spent["nfe"] + point.nfe, spent["plans"] + 1
            bar.update(task, description=f"{spent['plans']} plans, {spent['nfe']:,} NFE an image; {plan}")

        evaluation = Evaluation(
            extractor,
            metrics,
            request.out,
            request.samples,
            VALIDATION_SEED + request.seed,
            batch=request.batch,
            ranks=ranks,
        )
        search = plan_model(evaluation, model, reference, budgets, None, request.guidance, on_drawn)
        if not ranks.is_main:
            return {}
        figures = {
            "model": model.name,
            "metric": evaluation.named(metric),
            "better": metric.better,
            "plans": plain_plans(search.plans),
            "rows": search.told(),
            "tried": spent["plans"],
            "nfe_per_image": spent["nfe"],
            "samples": request.samples,
            "real_images": len(reference.real),
            "unused_below": len(reference.source) // 4,
            "settings": {
                "data": request.data,
                "guidance": model.pipeline.resolve_guidance(request.guidance),
                "extractor": extractor.name,
                "extractor_digest": extractor.digest,
                "seed": request.seed,
            },
            "versions": environment(),
        }
        write_json(request.out / "plans.json", figures)
        write_text(request.out / "plans.md", table(figures))
        if request.in_place:
            write_plans(folder, search.plans)
        else:
            _copy(folder, request.out / "pipeline", search.plans)
    return figures


def table(figures: Mapping[str, Any]) -> str:
    """The plans as a page to read."""
    lines = [
        f"# Plans of {figures['model']}",
        "",
        f"{figures['metric']} ({figures['better']} is better) of {figures['samples']} images against "
        f"{figures['real_images']} real ones kept for validation. {figures['tried']} plans were tried, "
        f"{figures['nfe_per_image']:,} network evaluations an image.",
        "",
        "| steps | uniform | planned | plan |",
        "| --: | --: | --: | --- |",
        *(
            f"| {row['budget']} | {row['uniform']:.4g} | {row['planned']:.4g} | {row['plan']} |"
            for row in figures["rows"]
        ),
        "",
        "These figures chose the plans, and flatter them: `anystep evaluate` measures them on other images, as long as "
        f"its --samples are at most {figures['unused_below']:,}.",
        "",
    ]
    return "\n".join(lines)


def _folder(model: Model, in_place: bool) -> Path:
    """Of a model, wherever it came from. Raises `InputError` where its plans are to be written and may not be."""
    found = find(model.name)
    if in_place and (model.name == BUILTIN or not Path(found).is_dir()):
        raise InputError(f"--in-place: model {model.name!r} is no folder of yours; without it a copy is made in --out")
    return Path(found) if Path(found).is_dir() else Path(TransitionPipeline.download(found))


def _copy(folder: Path, copy: Path, plans: Mapping[int, StepPlan]) -> None:
    """A model's folder with plans, which appears whole."""
    with publishing(copy) as part:
        shutil.copytree(folder, part, ignore=shutil.ignore_patterns(MARKER, LOCK, HOLDER, "*.part"))
        write_plans(part, plans)
