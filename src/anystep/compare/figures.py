"""What came out, over seeds and side by side, as plain values."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any, TypeAlias

import torch
from torch import Tensor

from anystep.compare.experiment import ComparedRun, Comparison
from anystep.compare.milestones import spent
from anystep.compare.paired import Losses, best_or_level, estimate, gain, mean_over_seeds, verdict_of
from anystep.evaluation.metrics.base import Direction, shortfall
from anystep.training.plan import recipe_evaluations
from anystep.training.run import METRICS

# of each metric the figure and its bootstrap replicates, at one number of steps
Replicates: TypeAlias = Mapping[str, Tensor]
Points: TypeAlias = Mapping[int, Sequence[Replicates]]  # by seed, at rising numbers of steps
Found: TypeAlias = Mapping[str, Points]  # by variant


def over_seeds(
    comparison: Comparison,
    runs: Sequence[ComparedRun],
    found: Points,
    reports: Mapping[str, Mapping[str, Any]],
    directions: Mapping[str, Direction],
) -> dict[str, Any]:
    """The mean figures of one variant at each number of steps, how they change from one to the next, and scores.

    Args:
        runs: those of the variant.
        reports: by the name of the run.
    """
    models = [reports[run.name] for run in runs]
    points = []
    for place, point in enumerate(models[0]["points"]):
        same = [model["points"][place] for model in models]
        figures = {metric: {run.seed: found[run.seed][place][metric] for run in runs} for metric in directions}
        points.append(
            {
                **point,
                "nfe": max(each["nfe"] for each in same),  # of plans that differ
                "seconds_per_image": mean(each["seconds_per_image"] for each in same),
                "metrics": {metric: estimate(each) for metric, each in figures.items()},
                "seeds": {metric: [values[0].item() for values in each.values()] for metric, each in figures.items()},
            }
        )
    recipe = runs[0].recipe
    return {
        "name": runs[0].variant,
        "seeds": [run.seed for run in runs],
        "training": {
            "steps": recipe.run.steps,
            "evaluations_per_sample": recipe_evaluations(recipe),
            "seconds": (spent(runs[0].folder / METRICS) or [(0.0, 0.0)])[-1][1],
        },
        "points": points,
        "scores": {
            metric: None if (scored := score(found, metric, direction)) is None else estimate(scored)
            for metric, direction in directions.items()
        },
        "doublings": _doublings(found, sorted(comparison.steps), directions),
        "movement": _movement([model["movement"] for model in models]),
    }


def losses(points: Points, place: int, metric: str, direction: Direction) -> Losses:
    """Of one variant at one number of steps."""
    return {seed: shortfall(mine[place][metric], direction) for seed, mine in points.items()}


def score(points: Points, metric: str, direction: Direction) -> Losses | None:
    """The mean over step counts of the natural logarithm of a distance; None of what is none, or not positive."""
    figures = {seed: torch.stack([point[metric] for point in mine]) for seed, mine in points.items()}
    if direction != "lower" or not all((each > 0).all() for each in figures.values()):
        return None
    return {seed: each.log().mean(0) for seed, each in figures.items()}


def _doublings(points: Points, counts: Sequence[int], directions: Mapping[str, Direction]) -> dict[str, list[Any]]:
    """What the next number of steps gains on each, paired over seeds."""
    answers: dict[str, list[Any]] = {}
    for metric, direction in directions.items():
        each = [losses(points, place, metric, direction) for place in range(len(counts))]
        gains = [gain(more, fewer) for fewer, more in pairwise(each)]
        answers[metric] = [
            {"from": fewer, "to": more, "gain": gained, "verdict": verdict_of(gained)}
            for (fewer, more), gained in zip(pairwise(counts), gains, strict=True)
        ]
    return answers


def _movement(each: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean over seeds of how far the picture of one seed moves."""
    return [
        {
            what: mean_over_seeds([moved[what]["value"] for moved in same], value) if isinstance(value, dict) else value
            for what, value in same[0].items()
        }
        for same in zip(*each, strict=True)
    ]


def side_by_side(comparison: Comparison, found: Found, directions: Mapping[str, Direction]) -> dict[str, Any]:
    """What the first variant gains on each other one; who is best or level, at each number of steps and in score."""
    first, *others = comparison.variants
    steps = sorted(comparison.steps)
    against, best = [], {}
    for metric, direction in directions.items():
        columns = [
            {name: losses(points, place, metric, direction) for name, points in found.items()}
            for place in range(len(steps))
        ]
        for other in others:
            for count, column in zip(steps, columns, strict=True):
                gained = gain(column[first], column[other])
                told = {"other": other, "steps": count, "metric": metric}
                against.append({**told, "gain": gained, "verdict": verdict_of(gained)})
        scores = {name: score(points, metric, direction) for name, points in found.items()}
        known = {name: each for name, each in scores.items() if each is not None}
        best[metric] = {
            "steps": {str(count): best_or_level(column) for count, column in zip(steps, columns, strict=True)},
            "score": best_or_level(known) if len(known) == len(scores) else [],
        }
    return {"against": against, "best_or_level": best}
