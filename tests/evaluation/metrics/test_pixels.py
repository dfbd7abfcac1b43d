"""Pixels and sharpness against their definitions."""

import math

import pytest
import torch
from helpers import frechet_distance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d

from anystep.evaluation.metrics.base import ImageFeatures, measure
from anystep.evaluation.metrics.pixels import ROUNDING, PixelFrechetDistance, Sharpness, fine_energy, small_pixels


def pictures(count: int, side: int = 8, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return drawn.expand(-1, 3, -1, -1)


def seen(images: Tensor) -> ImageFeatures:
    return ImageFeatures(torch.zeros(len(images), 4), pixels=small_pixels(images), fine_energy=fine_energy(images))


def wave(cycles: float, side: int = 32, phase: float = 0.0) -> Tensor:
    """A grey image whose mirrored continuation is one frequency along its rows: a cosine at the middles of pixels."""
    places = torch.arange(side) + 0.5
    row = 127.5 + 100 * torch.cos(2 * math.pi * cycles * places + phase)
    return row.expand(1, 3, side, side).round().to(torch.uint8)


def test_small_images_are_kept_exactly_and_grey_ones_in_one_channel() -> None:
    colour, grey = pictures(3, 9), pictures(3, 9, channels=1)
    assert torch.equal(small_pixels(colour).to(torch.uint8), colour.flatten(2))
    assert torch.equal(small_pixels(grey).to(torch.uint8), grey[:, :1].flatten(2))


def test_large_images_are_averaged() -> None:
    images = pictures(2, 64)
    expected = avg_pool2d(images.float(), 2).flatten(2)
    torch.testing.assert_close(small_pixels(images).float(), expected, atol=0.07, rtol=0)
    assert small_pixels(pictures(1, 40)[..., :20]).shape == (1, 3, 32 * 20)


def test_the_distance_of_pixels_is_the_frechet_distance_of_pixels_in_the_unit_interval() -> None:
    real, generated = pictures(60), pictures(70, seed=1) // 2
    x, y = (images.flatten(1) / 255 for images in (real, generated))
    expected = frechet_distance(x, y) / 3
    assert measure(PixelFrechetDistance(), seen(real), seen(generated))[0].item() == pytest.approx(expected, rel=1e-6)


def test_grey_images_are_as_far_apart_in_one_channel_as_in_three() -> None:
    real, generated = seen(pictures(60, channels=1)), seen(pictures(60, channels=1, seed=1) // 2)
    assert real.pixels is not None
    as_colours = ImageFeatures(real.features, pixels=real.pixels.expand(-1, 3, -1))
    one, three = (measure(PixelFrechetDistance(), each, generated) for each in (real, as_colours))
    torch.testing.assert_close(one, three)


@given(seed=st.integers(0, 100), height=st.integers(3, 12), width=st.integers(3, 12))
def test_fine_energy_is_at_most_the_mean_square_and_flat_images_have_none(seed: int, height: int, width: int) -> None:
    images = pictures(2, 12, seed)[..., :height, :width]
    luminance = (images.double() / 255 * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1)
    energy = fine_energy(images)
    assert (energy >= 0).all()
    assert (energy.double() <= luminance.var((1, 2), correction=0) + 1e-9).all()
    flat = torch.full((1, 3, height, width), seed, dtype=torch.uint8)
    assert fine_energy(flat).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("cycles", "fine"), [(1 / 16, False), (7 / 32, False), (9 / 32, True), (15 / 32, True)])
def test_a_wave_is_fine_above_half_the_nyquist_frequency(cycles: float, fine: bool) -> None:
    amplitude = (100 / 255) ** 2 / 2
    energy = fine_energy(wave(cycles)).item()
    assert energy == pytest.approx(amplitude if fine else 0, rel=0.01, abs=3 * ROUNDING)
    turned = fine_energy(wave(cycles).transpose(-1, -2)).item()
    assert energy == pytest.approx(turned, rel=1e-5)


def test_opposite_edges_that_differ_are_no_fine_detail() -> None:
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(1, 3, 64, 64)
    assert fine_energy(ramp).item() < 2 * ROUNDING


def test_blurred_images_are_less_sharp_and_noisy_ones_more() -> None:
    real = pictures(40, 16) // 4 + 60
    blurred = avg_pool2d(real.float(), 3, 1, 1).round().to(torch.uint8)
    noisy = real + pictures(40, 16, 1) // 4
    sharpness = {
        name: measure(Sharpness(), seen(real), seen(images))[0].item()
        for name, images in {"same": real, "blurred": blurred, "noisy": noisy}.items()
    }
    assert sharpness["same"] == pytest.approx(1)
    assert sharpness["blurred"] < 0.7
    assert sharpness["noisy"] > 1.5


def test_flat_images_have_a_sharpness() -> None:
    flat = seen(torch.full((10, 3, 8, 8), 9, dtype=torch.uint8))
    assert measure(Sharpness(), flat, flat)[0].item() == pytest.approx(1)
    assert 0 < measure(Sharpness(), seen(pictures(10)), flat)[0].item() < 1e-3
