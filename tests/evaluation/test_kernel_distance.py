"""The kernel distance is what its definition says, and its interval is as wide as it should be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.errors import InputError
from anystep.evaluation.kernel_distance import kernel_distance, squared_mmd


@given(seed=st.integers(0, 1000))
def test_it_is_the_double_sum_over_pairs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() @ b.double() / 3 + 1) ** 3)

    within_x = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(kernel(a, b) for a in x for b in y) / 20
    assert squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * between)


@given(seed=st.integers(0, 1000))
def test_it_is_about_zero_for_one_distribution_and_grows_with_a_shift(seed: int) -> None:
    one, two = torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(seed))
    same = kernel_distance(one, two, subset_size=100)
    assert same.low < 0 < same.high
    near, far = (kernel_distance(one, two + shift, subset_size=100) for shift in (0.3, 0.8))
    assert 0 < near.low < near.high < far.low


def test_it_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([squared_mmd(*torch.randn(2, 10, 4, generator=generator)) for _ in range(400)])
    assert values.min() < 0
    assert abs(values.mean()) < 3 * values.std() / 400**0.5


@pytest.mark.parametrize("subset_size", [100, 200, 360])
def test_the_interval_is_as_wide_as_repeated_draws_spread(subset_size: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        one, two = torch.randn(2, 400, 8, generator=generator)
        return one, two + 0.5

    spread = torch.tensor([squared_mmd(*pair()) for _ in range(200)]).std().item()
    estimates = [kernel_distance(*pair(), subset_size=subset_size) for _ in range(10)]
    width = sum(estimate.high - estimate.low for estimate in estimates) / 10
    assert width == pytest.approx(2 * 1.96 * 1000 * spread, rel=0.2)


def test_the_interval_is_that_of_the_distances_of_its_subsets() -> None:
    one, two = torch.randn(50, 4), torch.randn(60, 4) + 0.5
    estimate = kernel_distance(one, two, subsets=5, subset_size=20, seed=3)
    generator = torch.Generator().manual_seed(3)
    parts = []
    for _ in range(5):
        mine, other = (torch.randperm(count, generator=generator)[:20] for count in (50, 60))
        parts.append(squared_mmd(one[mine], two[other]))
    margin = 1.96 * 1000 * torch.tensor(parts).std().item() * (20 / 30) ** 0.5
    assert estimate.value == pytest.approx(1000 * squared_mmd(one, two))
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - margin, estimate.value + margin), rel=1e-4)


def test_a_seed_repeats_the_interval_and_another_leaves_the_value() -> None:
    one, two = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    first, again, other = (kernel_distance(one, two, subset_size=20, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (other.value, other.low != first.low) == (first.value, True)


@pytest.mark.parametrize("count", [100, 500])
def test_too_few_samples_say_how_many_are_needed(count: int) -> None:
    with pytest.raises(InputError, match=f"at least 501 samples on each side, got {count}"):
        kernel_distance(torch.randn(count, 4), torch.randn(600, 4))


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="equal widths"):
        squared_mmd(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(InputError, match=">= 2 rows"):
        squared_mmd(torch.randn(1, 4), torch.randn(3, 4))
