"""Paired differences tell what the spread of seeds would hide."""

import math

import pytest
import torch

from anystep.compare.paired import best_or_level, gain, student, verdict_of


def seeded(values: dict[int, float], spread: float = 0.0) -> dict[int, torch.Tensor]:
    noise = spread * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {seed: torch.cat([torch.zeros(1).double(), noise]) + value for seed, value in values.items()}


def test_level_is_what_paired_differences_cannot_tell() -> None:
    """Seeds differ by far more than variants; with paired seeds the small difference is sure all the same."""
    ours = seeded({0: 10.0, 1: 20.0, 2: 30.0})
    near = seeded({0: 9.8, 1: 20.3, 2: 30.1})
    far = seeded({0: 11.0, 1: 21.1, 2: 30.9, 7: 0.0})
    losses = {"ours": ours, "near": near, "far": far}
    assert gain(ours, far)["value"] == pytest.approx(1.0)
    half = student(2) * 0.1 / 3**0.5
    assert gain(ours, far)["low"] == pytest.approx(1 - half)
    assert verdict_of(gain(ours, far)) == "better"
    assert verdict_of(gain(far, ours)) == "worse"
    assert best_or_level({name: losses[name] for name in ("ours", "near")}) == ["ours", "near"]
    assert best_or_level({**losses, "far": {seed: far[seed] for seed in (0, 1, 2)}}) == ["ours", "near"]


def test_of_one_seed_the_redrawn_images_tell() -> None:
    sure, unsure = seeded({0: 1.0}), seeded({0: 1.2}, spread=1.0)
    assert best_or_level({"a": sure, "b": seeded({0: 1.2}, spread=0.01)}) == ["a"]
    assert best_or_level({"a": sure, "b": unsure}) == ["a", "b"]
    assert best_or_level({"a": sure, "b": seeded({0: math.nan})}) == ["a"]
    assert best_or_level({"b": seeded({0: math.nan})}) == []


def test_two_seeds_are_not_ranked_beside_more() -> None:
    """By their intervals a hundred and one would be level."""
    sure = seeded({0: 1.0, 1: 1.1, 2: 0.9})
    unsure = seeded({0: 150.0, 1: 50.0})
    assert best_or_level({"sure": sure, "unsure": unsure}) == ["sure"]
    assert best_or_level({"better": seeded({0: 0.1, 1: 0.2}), "sure": sure}) == ["sure"]
    assert best_or_level({"sure": {seed: sure[seed] for seed in (0, 1)}, "unsure": unsure}) == ["sure", "unsure"]


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (9, 2.262), (10, 2.2281), (15, 2.1314), (30, 2.0423)])
def test_students_quantiles(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=4e-3)
