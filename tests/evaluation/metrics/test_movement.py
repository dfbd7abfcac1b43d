"""Nothing moves from a set to itself; strangers are one apart."""

import pytest
import torch
from torch import Tensor

from anystep.errors import InputError
from anystep.evaluation.metrics.base import ImageFeatures, interval
from anystep.evaluation.metrics.movement import movement


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def observed(count: int, seed: int, channels: int = 3) -> ImageFeatures:
    levels = torch.rand(count, 1, 16, generator=torch.Generator().manual_seed(seed)) * 255
    return ImageFeatures(features(count, seed), pixels=levels.expand(-1, channels, -1))


def test_the_same_picture_does_not_move() -> None:
    same = observed(30, 0)
    for moved in movement(same, same).values():
        assert moved.shape == (201,)
        assert (moved == 0).all()


def test_other_pictures_are_as_far_as_other_pictures() -> None:
    moved = interval(movement(observed(400, 0), observed(400, 1))["features"])
    assert moved.low < 1 < moved.high
    assert moved.high - moved.low < 0.1


def test_movement_is_its_definition() -> None:
    fewer, more = observed(7, 0), observed(7, 1)
    x, y = fewer.features.double(), more.features.double()
    pairs = [(x[i] - y[i]).norm() for i in range(7)]
    others = [(y[i] - y[j]).norm() for i in range(7) for j in range(7) if i != j]
    moved = movement(fewer, more)
    assert moved["features"][0].item() == pytest.approx((sum(pairs) / 7 / (sum(others) / 42)).item())
    assert fewer.pixels is not None
    assert more.pixels is not None
    expected = ((fewer.pixels.double() - more.pixels.double()) / 255).square().mean().sqrt()
    assert moved["pixels"][0].item() == pytest.approx(expected.item())


def test_grey_pixels_are_compared_with_coloured_ones() -> None:
    one, three = observed(20, 0, 1), observed(20, 1, 3)
    torch.testing.assert_close(movement(one, three)["pixels"], movement(observed(20, 0, 3), three)["pixels"])


def test_images_of_other_seeds_are_refused() -> None:
    with pytest.raises(InputError, match="3 and 4 images: not of the same seeds"):
        movement(observed(3, 0), observed(4, 0))
