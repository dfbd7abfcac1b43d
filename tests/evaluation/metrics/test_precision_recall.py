"""Precision, recall, density and coverage against their definitions, image by image."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.evaluation.metrics.base import BootstrapWeights, ImageFeatures, measure
from anystep.evaluation.metrics.inception_score import InceptionScore
from anystep.evaluation.metrics.precision_recall import NEIGHBOURS, Coverage, Density, Precision, Recall


def points(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def by_definition(real: torch.Tensor, generated: torch.Tensor) -> tuple[float, float, float, float]:
    def radius(of: torch.Tensor, index: int) -> float:
        return float(sorted((of[index] - other).norm().item() for other in of)[NEIGHBOURS])

    inside = [[(m - r).norm().item() <= radius(real, j) for j, r in enumerate(real)] for m in generated]
    reverse = [[(r - m).norm().item() <= radius(generated, i) for i, m in enumerate(generated)] for r in real]
    precision = sum(any(row) for row in inside) / len(generated)
    recall = sum(any(row) for row in reverse) / len(real)
    density = sum(sum(row) for row in inside) / (NEIGHBOURS * len(generated))
    coverage = sum(any(row[j] for row in inside) for j in range(len(real))) / len(real)
    return precision, recall, density, coverage


@given(seed=st.integers(0, 100), shift=st.floats(0, 3))
def test_they_are_what_they_are_defined_to_be(seed: int, shift: float) -> None:
    real, generated = points(14, seed), points(12, seed + 1) + shift
    values = [
        measure(metric, ImageFeatures(real), ImageFeatures(generated))[0].item()
        for metric in (Precision(), Recall(), Density(), Coverage())
    ]
    torch.testing.assert_close(torch.tensor(values), torch.tensor(by_definition(real.double(), generated.double())))


def test_one_picture_over_and_over_is_precise_and_covers_little() -> None:
    real = points(100, 0)
    generated = real[:1] + 1e-3 * points(100, 1)
    figures = {
        m.name: measure(m, ImageFeatures(real), ImageFeatures(generated))[0]
        for m in (Precision(), Recall(), Coverage())
    }
    assert figures["precision"] == 1
    assert figures["recall"] < 0.05
    assert figures["coverage"] < 0.2


def test_the_inception_score_is_between_one_and_the_number_of_classes() -> None:
    sure = 50 * torch.eye(4).repeat(20, 1)
    for logits, expected in ((sure, 4.0), (torch.zeros(80, 4), 1.0), (sure[:1].repeat(80, 1), 1.0)):
        value = measure(InceptionScore(), ImageFeatures(points(80, 0)), ImageFeatures(points(80, 1), logits))[0]
        torch.testing.assert_close(value.float(), torch.tensor(expected))


def test_the_inception_score_is_its_formula() -> None:
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
    p = logits.softmax(1)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    weights = BootstrapWeights(torch.ones(1, 60, dtype=torch.float64), torch.ones(1, 60, dtype=torch.float64))
    seen = ImageFeatures(points(60, 0), logits)
    torch.testing.assert_close(InceptionScore()(seen, seen, weights)[0], expected)
