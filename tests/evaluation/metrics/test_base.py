"""Counting images, intervals that are as wide as repeated draws spread, and words for a curve."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.errors import InputError
from anystep.evaluation.metrics.base import (
    ImageFeatures,
    Metric,
    draw_bootstrap_weights,
    interval,
    measure,
    probability_not_worse,
    shortfall,
    verdict,
)
from anystep.evaluation.metrics.kernel_distance import KernelDistance
from anystep.evaluation.metrics.registry import METRICS, MeanScore, choose_metrics


def observed(count: int, width: int = 8, shift: float = 0.0, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    return ImageFeatures(
        torch.randn(count, width, generator=generator) + shift,
        torch.randn(count, 5, generator=generator),
        pixels=255 * torch.rand(count, 3, 16, generator=generator),
        fine_energy=torch.rand(count, generator=generator) + shift,
    )


@given(reals=st.integers(1, 30), mades=st.integers(1, 30), seed=st.integers(0, 99))
def test_counts_are_of_whole_sets_and_the_first_is_the_set_itself(reals: int, mades: int, seed: int) -> None:
    weights = draw_bootstrap_weights(reals, mades, 7, seed)
    assert weights.real.shape == (8, reals)
    assert weights.generated.shape == (8, mades)
    assert (weights.real[0] == 1).all()
    assert (weights.real.sum(1) == reals).all()
    assert (weights.generated.sum(1) == mades).all()
    assert torch.equal(weights.generated, draw_bootstrap_weights(reals, mades, 7, seed).generated)


@pytest.mark.parametrize("name", list(METRICS))
def test_counting_an_image_twice_is_having_it_twice_in_a_metric_of_means(name: str) -> None:
    """The figure of a whole number of copies of everything is that of the set, up to the corrections for pairs."""
    metric = METRICS[name]()
    assert isinstance(metric, Metric)
    real, generated = observed(60), observed(60, shift=0.3, seed=1)
    values = measure(metric, real, generated)
    assert values.shape == (metric.replicates + 1,)
    assert values.isfinite().all()
    assert torch.equal(values, measure(metric, real, generated))


@pytest.mark.parametrize(
    # redrawn images repeat, which the neighbours' shares feel: their intervals err on the wide side
    ("name", "narrow", "wide"),
    [
        ("kernel_distance", 0.75, 1.25),
        ("sharpness", 0.75, 1.25),
        ("precision", 0.8, 2.0),
        ("recall", 0.8, 2.0),
        ("density", 0.75, 1.5),
        ("coverage", 0.8, 2.0),
    ],
)
def test_the_interval_is_as_wide_as_repeated_draws_spread(name: str, narrow: float, wide: float) -> None:
    def value(draw: int) -> torch.Tensor:
        return measure(METRICS[name](), observed(200, seed=2 * draw), observed(200, shift=0.5, seed=2 * draw + 1))

    spread = torch.stack([value(draw)[0] for draw in range(60)]).std().item()
    widths = [(found := interval(value(draw))).high - found.low for draw in range(100, 110)]
    assert narrow < sum(widths) / 10 / (2 * 1.96 * spread) < wide


def test_twice_and_half_are_as_far_from_one() -> None:
    figures = torch.tensor([0.5, 2.0, 1.0, 0.9], dtype=torch.float64)
    half, twice, one, near = shortfall(figures, "nearest 1").tolist()
    assert half == pytest.approx(twice)
    assert one == 0 < near < half
    assert torch.equal(shortfall(figures, "lower"), figures)
    assert torch.equal(shortfall(figures, "higher"), -figures)


def test_ties_are_not_gains() -> None:
    same = measure(KernelDistance(), observed(60), observed(60, seed=1))
    assert probability_not_worse(same, same, "lower") == 1.0
    assert verdict([1, 2], [1.0], level=[0]) == "no difference between neighbouring step counts can be told"


def test_paired_differences_are_told_where_single_ones_are_not() -> None:
    """Two sets that share their noise: their intervals overlap, their difference is sure."""
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = observed(200)
    metric = MeanScore("fit")
    fewer, more = (
        measure(metric, real, ImageFeatures(real.features, scores={"fit": scores + gain})) for gain in (0.0, 0.05)
    )
    assert interval(fewer).high > interval(more).low
    assert probability_not_worse(fewer, more, "higher") > 0.99
    assert probability_not_worse(fewer, more, "lower") < 0.01
    assert probability_not_worse(fewer, fewer, "higher") == 1.0


def test_too_few_images_say_how_many_are_needed() -> None:
    with pytest.raises(InputError, match="kernel_distance needs at least 50 images on each side, got 60 real and 49"):
        measure(KernelDistance(), observed(60), observed(49))


def test_features_of_another_extractor_are_refused() -> None:
    with pytest.raises(InputError, match="the reference has 8 features an image, the images have 9"):
        measure(KernelDistance(), observed(60), observed(60, width=9))


def test_an_unknown_metric_is_told_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown metric fid: expected some of kernel_distance, frechet_distance, "):
        choose_metrics(["kernel_distance", "fid"])


@pytest.mark.parametrize(
    ("chances", "words"),
    [
        ([0.99, 0.98], "gets better with every increase of steps"),
        ([0.5, 0.6], "no difference between neighbouring step counts can be told"),
        ([0.99, 0.5], "gets better or stays level; no difference can be told from 2 to 4 steps"),
        ([0.99, 0.01], "gets worse from 2 to 4 steps"),
        ([0.01, 0.02], "gets worse from 1 to 2 steps, from 2 to 4 steps"),
    ],
)
def test_a_curve_in_words(chances: list[float], words: str) -> None:
    assert verdict([1, 2, 4], chances) == words
