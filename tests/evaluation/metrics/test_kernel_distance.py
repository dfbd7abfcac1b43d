"""The kernel distance is what its definition says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.evaluation.metrics import kernel_distance
from anystep.evaluation.metrics.base import BootstrapWeights, ImageFeatures
from anystep.evaluation.metrics.kernel_distance import KernelDistance


def distance(x: torch.Tensor, y: torch.Tensor, weights: BootstrapWeights | None = None) -> torch.Tensor:
    once = BootstrapWeights(torch.ones(1, len(x), dtype=torch.float64), torch.ones(1, len(y), dtype=torch.float64))
    return KernelDistance()(ImageFeatures(x), ImageFeatures(y), weights or once)


@given(seed=st.integers(0, 1000))
def test_it_is_the_double_sum_over_pairs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() @ b.double() / 3 + 1) ** 3)

    within_x = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(kernel(a, b) for a in x for b in y) / 20
    assert distance(x, y).item() == pytest.approx(1000 * (within_x + within_y - 2 * between))


def test_counts_weigh_pairs_and_never_pair_copies_of_one_image() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    weights = BootstrapWeights(torch.tensor([[2.0, 1, 1, 0]]).double(), torch.tensor([[1.0, 1, 0, 2]]).double())

    def mean_of_pairs(a: torch.Tensor, weight: torch.Tensor) -> float:
        k = (a.double() @ a.double().T / 3 + 1) ** 3
        pairs = [(weight[i] * weight[j], k[i, j]) for i in range(4) for j in range(4) if i != j]
        return float(sum(w * v for w, v in pairs) / sum(w for w, _ in pairs))

    rows, columns = [0, 0, 1, 2], [0, 1, 3, 3]
    between = ((x[rows].double() @ y[columns].double().T / 3 + 1) ** 3).mean()
    expected = mean_of_pairs(x, weights.real[0]) + mean_of_pairs(y, weights.generated[0]) - 2 * between
    assert distance(x, y, weights).item() == pytest.approx(1000 * expected)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    whole = distance(x, y)
    monkeypatch.setattr(kernel_distance, "BLOCK", 7)
    torch.testing.assert_close(distance(x, y), whole)


def test_it_is_unbiased_and_grows_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([distance(*torch.randn(2, 10, 4, generator=generator)) for _ in range(400)])
    assert values.min() < 0
    assert abs(values.mean()) < 3 * values.std() / 400**0.5
    one, two = torch.randn(2, 300, 16, generator=generator)
    assert distance(one, two) < distance(one, two + 0.3) < distance(one, two + 0.8)
