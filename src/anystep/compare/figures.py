"""What came out, over seeds and side by side, as plain values."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from anystep.compare.experiment import Comparison
from anystep.errors import InputError
from anystep.evaluation.evaluate import Point
from anystep.evaluation.metric import interval
from anystep.files import parse_json, read_text
from anystep.training.budget import evaluations_per_sample
from anystep.training.config import Recipe
from anystep.training.run import METRICS

# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: from a table, and beyond it from its expansion about the normal's."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _mean(values: Sequence[float], alone: Mapping[str, float]) -> dict[str, float]:
    """Mean and 95 % interval over seeds; of one seed what its own bootstrap says."""
    if len(values) == 1:
        return dict(alone)
    half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return {"value": mean(values), "low": mean(values) - half, "high": mean(values) + half}


def _seconds(log: Path) -> float:
    """Of a run, as far as its log can be read."""
    total = 0.0
    for line in read_text(log).splitlines() if log.is_file() else ():
        with suppress(InputError, TypeError):
            total += parse_json(line, str(log)).get("seconds") or 0.0
    return total


def over_seeds(
    comparison: Comparison, name: str, runs: Mapping[tuple[str, int], tuple[Recipe, Path]], single: Mapping[str, Any]
) -> dict[str, Any]:
    mine = [model["points"] for model in single["models"] if model["name"].rsplit(", seed ", 1)[0] == name]
    points = []
    for same in zip(*mine, strict=True):
        metrics = {
            metric: _mean([point["metrics"][metric]["value"] for point in same], same[0]["metrics"][metric])
            for metric in single["better"]
        }
        points.append(
            {
                **same[0],
                "seconds_per_image": mean(point["seconds_per_image"] for point in same),
                "metrics": metrics,
                "seeds": {metric: [point["metrics"][metric]["value"] for point in same] for metric in metrics},
            }
        )
    recipe, folder = runs[name, comparison.seeds[0]]
    return {
        "name": name,
        "training": {
            "steps": recipe.run.steps,
            "evaluations_per_sample": evaluations_per_sample(recipe.objective),
            "seconds": _seconds(folder / METRICS),
        },
        "points": points,
    }


def against(comparison: Comparison, found: Mapping[str, list[Point]], single: Mapping[str, Any]) -> list[Any]:
    """What the first variant gains on each other one at each number of steps: positive where it is better."""
    first, *others = comparison.variants
    answers = []
    for other in others:
        for place, steps in enumerate(sorted(comparison.steps)):
            for metric, better in single["better"].items():
                sign = 1 if better == "lower" else -1
                gains = [
                    sign
                    * (
                        found[f"{other}, seed {seed}"][place].replicates[metric]
                        - found[f"{first}, seed {seed}"][place].replicates[metric]
                    )
                    for seed in comparison.seeds
                ]
                one = interval(gains[0])
                gain = _mean([each[0].item() for each in gains], vars(one))
                word = "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "level"
                answers.append({"other": other, "steps": steps, "metric": metric, "gain": gain, "verdict": word})
    return answers
