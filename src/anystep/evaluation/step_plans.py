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
from anystep.files import HOLDER, LOCK, MARKER, publish_folder, remove_parts, write_json, write_text
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
GUARDED = "pixel_frechet_distance"  # that more steps shall not raise either
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
    measured: Callable[[Observed], Replicates],
    budgets: Sequence[int],
    better: Better,
    choices: Choices,
    uniform: Callable[[int], StepPlan] = StepPlan,
    guarded: Callable[[Observed], Sequence[tuple[Replicates, Better]]] = lambda made: (),
) -> Search:
    """For each budget the best plan, from the smallest budget on: a coordinate search on one set of seeds.

    It begins with the better of uniform times and the settings of the budget before, and then tries the choices of one
    group after the other. A choice is taken where it is better with `CONFIDENCE`: normal, from the spread of the paired
    differences of bootstrap replicates. Of what was tried the best is taken that in the same way beats the plan of the
    budget before, and is in no guarded figure worse; where none is, that plan is kept, with its fewer steps. So no
    figure is worse than that of a smaller budget. Beyond `NEAR` steps, a budget that comes after one which kept a plan
    tries no choices but uniform times and the same settings.

    Args:
        draw: images by a plan; always of the same seeds and prompts.
        measured: the figure of images and its replicates, always of the same redraws (`evaluation.metrics.base`).
        budgets: numbers of steps.
        choices: groups of settings in their order: beyond `NEAR` steps only those next to the best are tried.
        uniform: the plan without settings for a number of steps.
        guarded: other figures, which shall not get worse from one budget to the next.
    """
    known: dict[StepPlan, tuple[Replicates, Sequence[tuple[Replicates, Better]]]] = {}

    def look(plan: StepPlan) -> Replicates:
        if plan not in known:
            made = draw(plan)
            known[plan] = measured(made), guarded(made)
        return known[plan][0]

    def beats(one: StepPlan, other: StepPlan) -> bool:
        return is_better(look(one), look(other)) and probability_not_worse(look(other), look(one), better) > CONFIDENCE

    def is_better(one: Replicates, other: Replicates) -> bool:
        return bool(shortfall(one, better)[0] < shortfall(other, better)[0])

    def costs(one: StepPlan, other: StepPlan) -> bool:
        """Whether a guarded figure of the first is worse."""
        pairs = zip(known[one][1], known[other][1], strict=True)
        return any(probability_not_worse(before, now, kind) < 1 - CONFIDENCE for (now, kind), (before, _) in pairs)

    rows: list[Planned] = []
    for budget in sorted(set(budgets)):
        even = best = uniform(budget)
        seen = {effect(even)}
        if rows:
            again = replace(rows[-1].plan, steps=budget)
            if effect(again) not in seen and is_better(look(again), look(even)):
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
            tried = [
                best,
                *sorted((p for p in known if p.steps == budget), key=lambda p: shortfall(look(p), better)[0]),
            ]
            best = next((p for p in tried if beats(p, before) and not costs(p, before)), before)
        rows.append(Planned(budget, best, look(best)[0].item(), look(even)[0].item()))
    return Search(rows, sum(plan.steps for plan in known))


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
    """`search_plans` of a model by the first metric of an evaluation; what is drawn stays in its folder.

    Args:
        evaluation: its seed is of the first image, and of the redraws; its other metrics are guarded.
        reference: the real images of validation.
    """
    prompts, (metric, *others) = reference.prompts(evaluation.samples, 0), evaluation.metrics
    real = observe_real(evaluation, reference)

    def draw(plan: StepPlan) -> Observed:
        (point,) = generate_points(evaluation, model, [plan.steps], prompts, size, guidance, plan)
        on_drawn(plan, point)
        return point.observed

    return search_plans(
        draw,
        lambda made: measure(metric, real, made, evaluation.seed),
        budgets,
        metric.better,
        CHOICES[model.pipeline.config.sampling],
        lambda steps: model.pipeline.plan(steps, "uniform"),
        lambda made: [(measure(other, real, made, evaluation.seed), other.better) for other in others],
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
    metrics = choose_metrics(list(dict.fromkeys([request.metric, GUARDED])))
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
    part = copy.with_name(f".{copy.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns(MARKER, LOCK, HOLDER, "*.part"))
    write_plans(part, plans)
    publish_folder(part, copy)
