"""Differences of runs that share their seeds, and with them noise, captions and real images.

A loss is a figure that is lower where it is better, with its bootstrap replicates, of each seed of a variant.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TypeAlias

from torch import Tensor

from anystep.evaluation.metrics.base import interval

Losses: TypeAlias = Mapping[int, Tensor]
# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: from a table, and beyond it from its expansion about the normal's."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def mean_over_seeds(values: Sequence[float], alone: Mapping[str, float]) -> dict[str, float]:
    """Mean and 95 % interval over seeds; of one seed what its own bootstrap says."""
    if len(values) == 1:
        return dict(alone)
    half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return {"value": mean(values), "low": mean(values) - half, "high": mean(values) + half}


def estimate(figures: Losses) -> dict[str, float]:
    """The mean over seeds of figures and replicates, with its interval."""
    return mean_over_seeds([each[0].item() for each in figures.values()], vars(interval(next(iter(figures.values())))))


def gain(mine: Losses, other: Losses) -> dict[str, float]:
    """What `mine` gains on the other, over the seeds that both have, with its interval: positive where it is better."""
    return estimate({seed: other[seed] - mine[seed] for seed in mine if seed in other})


def verdict_of(gained: Mapping[str, float]) -> str:
    """`better` or `worse` where the interval excludes zero."""
    return "better" if gained["low"] > 0 else "worse" if gained["high"] < 0 else "level"


def best_or_level(losses: Mapping[str, Losses]) -> list[str]:
    """The variant with the lowest mean over its seeds, and all on which it gains nothing that can be told.

    Variants of two seeds are ranked among themselves alone: beside more seeds their intervals, three times as wide and
    wider, would make anything level. Variants with a figure that is not finite are none of them.
    """
    means = {name: mean(each[0].item() for each in mine.values()) for name, mine in losses.items()}
    means = {name: value for name, value in means.items() if math.isfinite(value)}
    most = max((len(losses[name]) for name in means), default=0)
    means = {name: value for name, value in means.items() if len(losses[name]) != 2 or most == 2}
    if not means:
        return []
    best = min(means, key=lambda name: means[name])
    return [name for name in means if name == best or not gain(losses[best], losses[name])["low"] > 0]
