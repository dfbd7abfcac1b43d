"""Sizes: multiples, within limits, nothing enlarged or stretched, and as little cropped as can be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anystep.data.example import BrokenExample
from anystep.data.sizing import CANVASES, ResolutionLimits, canvas, cropped, resize_and_crop


@given(
    width=st.integers(32, 4000),
    height=st.integers(32, 4000),
    multiple=st.sampled_from([8, 16, 32]),
    base=st.sampled_from([64, 256, 1024]),
)
def test_a_target_is_a_multiple_within_the_limits_and_no_enlargement(
    width: int, height: int, multiple: int, base: int
) -> None:
    limits = ResolutionLimits(multiple, base * base, 4 * base)
    if max(width, height) > 5 * min(width, height):
        return
    across, down = limits.target_size(width, height)
    assert across % multiple == down % multiple == 0
    assert across * down <= limits.area
    assert max(across, down) <= limits.side
    assert across <= width
    assert down <= height
    # at most a token's worth is cropped along one side, and at most two are given up to scaling
    lost = cropped((width, height), (across, down))
    assert 0 <= lost < 0.5
    scale = min(1.0, (limits.area / (width * height)) ** 0.5, limits.side / max(width, height))
    floor = tuple(max(multiple, int(side * scale) // multiple * multiple) for side in (width, height))
    assert lost <= cropped((width, height), floor) + (floor[0] * floor[1]) / (width * height * scale**2)  # type: ignore[arg-type]
    assert across >= floor[0] - multiple
    assert down >= floor[1] - multiple


@pytest.mark.parametrize(
    ("size", "target"),
    [((64, 64), (64, 64)), ((128, 128), (64, 64)), ((200, 100), (80, 40)), ((40, 40), (40, 40)), ((96, 32), (96, 32))],
)
def test_sizes_that_fit_are_kept_and_others_scaled(size: tuple[int, int], target: tuple[int, int]) -> None:
    assert ResolutionLimits(8, 64 * 64, 128).target_size(*size) == target


@pytest.mark.parametrize(
    ("size", "reason"),
    [((1, 1), "1x1 is smaller than the 8 pixels of a token"), ((30_000, 400), "75 times as long as wide")],
)
def test_what_cannot_be_given_a_size_says_why(size: tuple[int, int], reason: str) -> None:
    with pytest.raises(BrokenExample, match=reason):
        ResolutionLimits(8, 64 * 64, 128).target_size(*size)


def test_a_circle_stays_round_and_the_middle_is_kept() -> None:
    rows, columns = np.mgrid[:300, :420]
    disc = ((rows - 150) ** 2 + (columns - 210) ** 2 < 90**2) * np.uint8(255)
    target = ResolutionLimits(32, 256 * 192, 1024).target_size(420, 300)
    pixels = np.asarray(resize_and_crop(Image.fromarray(disc), target)) > 127
    wide, high = pixels.any(0).sum(), pixels.any(1).sum()
    assert abs(int(wide) - int(high)) <= 1
    middle = np.argwhere(pixels).mean(0)
    assert np.allclose(middle, [(target[1] - 1) / 2, (target[0] - 1) / 2], atol=0.6)


def test_drawn_pictures_have_their_proportions_within_the_limits() -> None:
    limits = ResolutionLimits.within(8, 96, None, 2.0)
    assert [canvas(each, limits) for each in CANVASES] == [
        (64, 64), (96, 64), (64, 96), (128, 64), (64, 128), (96, 96),
    ]  # fmt: skip
    assert all(math.prod(canvas(each, ResolutionLimits(8, 64 * 64, 320))) <= 64 * 64 for each in CANVASES)
    assert canvas((2.0, 1.0), 48) == (48, 48)
