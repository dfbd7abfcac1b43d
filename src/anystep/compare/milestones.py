"""Time to quality: the average weights of every run at some shares of its training, at some numbers of steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from anystep.compare.experiment import Comparison
from anystep.errors import InputError
from anystep.evaluation.evaluate import Point, generate_points
from anystep.evaluation.extractors.registry import FeatureExtractor
from anystep.evaluation.metrics.base import ImageFeatures, Metric, measure
from anystep.evaluation.metrics.registry import check_measurable
from anystep.evaluation.settings import Evaluation
from anystep.files import parse_json, read_text
from anystep.pipelines.load import load
from anystep.training.checkpoint_files import checkpoint_steps, read_average
from anystep.training.config import Recipe, RunConfig
from anystep.training.run import METRICS

COSTS = ("evaluations", "seconds")


def spent(log: Path) -> list[tuple[float, float]]:
    """Evaluations and seconds up to each training step, as far as the log of the run can be read."""
    evaluations, seconds, sums = 0.0, 0.0, []
    for line in read_text(log).splitlines() if log.is_file() else ():
        with suppress(InputError, TypeError, KeyError):
            record = parse_json(line, str(log))
            seconds += record["seconds"]
            evaluations += record["evaluations"] + 2 * round(record["images_per_second"] * record["seconds"])
        sums.append((evaluations, seconds))
    return sums


def kept_steps(steps: int, shares: Sequence[float]) -> list[int]:
    """The training steps of these shares of so many, rising."""
    return sorted({max(1, round(share * steps)) for share in shares})


def keeping(run: RunConfig, shares: Sequence[float]) -> RunConfig:
    """The same run, which makes and keeps a checkpoint at each of these shares of its steps."""
    return run.model_copy(update={"keep_every": tuple(kept_steps(run.steps, shares))})


def steps_there(there: Sequence[int], steps: int, shares: Sequence[float]) -> list[int]:
    """Of the checkpoints that are there, those of these shares; earlier versions kept some up to a hundredth off."""
    found = set()
    for wanted in kept_steps(steps, shares):
        off, step = min((abs(step - wanted), step) for step in there) if there else (steps, 0)
        if off <= steps / 100:
            found.add(step)
    return sorted(found)


def check_milestones(comparison: Comparison, metrics: Sequence[Metric], extractor: FeatureExtractor) -> None:
    """Raises InputError for no metric that is a distance, or fewer images than it needs."""
    distances = distances_of(metrics)
    if not distances:
        raise InputError("milestones need a metric that is lower where it is better, such as frechet_distance")
    try:
        check_measurable(distances, extractor, comparison.milestone_samples)
    except InputError as error:
        raise InputError(f"milestone_{error}") from None


@dataclass(frozen=True)
class Milestone:
    """A run after so many training steps.

    Attributes:
        evaluations, seconds: what the training took by then; a backward pass counts as two evaluations.
        points: images at every number of steps.
    """

    step: int
    evaluations: float
    seconds: float
    points: list[Point]

    def measured(self, evaluation: Evaluation, real: ImageFeatures) -> dict[str, Any]:
        """As plain values, with the distances of the images at every number of steps, by metric."""
        distances = {
            evaluation.metric_name(metric): [
                measure(metric, real, point.images, evaluation.seed)[0].item() for point in self.points
            ]
            for metric in distances_of(evaluation.metrics)
        }
        return {"step": self.step, "evaluations": self.evaluations, "seconds": self.seconds, "distances": distances}


def draw_milestones(
    comparison: Comparison,
    evaluation: Evaluation,
    recipe: Recipe,
    folder: Path,
    prompts: Sequence[str | int],
    device: torch.device,
) -> list[Milestone]:
    """Of a trained run, at those shares whose checkpoint is there: a run that had ended before has its last only."""
    steps = steps_there(checkpoint_steps(folder / "checkpoints"), recipe.run.steps, comparison.milestones)
    sums, model, found = spent(folder / METRICS), load(folder, device), []
    for step in steps:
        read_average(folder / "checkpoints", model.pipeline.transformer, step=step)
        points = generate_points(evaluation, model, sorted(comparison.milestone_steps), prompts)
        cost = sums[step - 1] if step <= len(sums) else (math.nan, math.nan)
        found.append(Milestone(step, *cost, points))
    return found


def distances_of(metrics: Sequence[Metric]) -> list[Metric]:
    """Those that are lower where they are better."""
    return [metric for metric in metrics if metric.direction == "lower"]


def reached(costs: Sequence[float], distances: Sequence[float], goal: float) -> float | None:
    """The cost at which a distance falls to a goal, linear over the logarithm of the cost; None where it never does.

    Where the first distance is below the goal already, its cost: it takes that at most.
    """
    if distances and distances[0] <= goal:
        return costs[0]
    for (less, before), (more, after) in pairwise(zip(costs, distances, strict=True)):
        if after <= goal < before:
            share = (before - goal) / (before - after)
            return math.exp(math.log(less) + share * math.log(more / less))
    return None


def time_to_quality(comparison: Comparison, found: Mapping[str, Sequence[Sequence[dict[str, Any]]]]) -> dict[str, Any]:
    """Means over seeds of measured milestones; what the first variant spends until it has what each other ends with."""
    first, *others = variants = [{"name": name, "points": _mean_points(runs)} for name, runs in found.items()]
    steps = sorted(comparison.milestone_steps)
    goals = [goal for other in others for goal in _goals(first, other, steps)]
    return {"samples": comparison.milestone_samples, "steps": steps, "variants": variants, "goals": goals}


def _mean_points(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The means over the runs of one variant, at the milestones that all of them have."""
    common = set.intersection(*({each["step"] for each in run} for run in runs))
    points = []
    for same in zip(*([each for each in run if each["step"] in common] for run in runs), strict=True):
        distances = {
            metric: [mean(values) for values in zip(*(each["distances"][metric] for each in same), strict=True)]
            for metric in same[0]["distances"]
        }
        costs = {what: mean(each[what] for each in same) for what in COSTS}
        points.append({"step": same[0]["step"], **costs, "distances": distances})
    return points


def _goals(first: dict[str, Any], other: dict[str, Any], steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What the first variant spends until it has each distance that the other one has at its end."""
    end = other["points"][-1] if other["points"] else {"distances": {}}
    for metric, distances in end["distances"].items():
        for place, (count, goal) in enumerate(zip(steps, distances, strict=True)):
            mine = [point["distances"][metric][place] for point in first["points"]]
            costs = {what: reached([point[what] for point in first["points"]], mine, goal) for what in COSTS}
            shares = {f"{what}_share": None if cost is None else cost / end[what] for what, cost in costs.items()}
            told = {"other": other["name"], "metric": metric, "steps": count, "distance": goal}
            yield {**told, **costs, **shares, "at_most": bool(mine) and mine[0] <= goal}
