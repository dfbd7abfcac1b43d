"""Sizes of networks by name."""

import pytest
import torch

from anystep.models import PRESETS, build_transformer

PUBLISHED = {"t2i-xl": 864_978_080, "c2i-xl-2": 664_128_016, "c2i-xl-1": 664_164_896, "c2i-b-4": 128_828_224}


@pytest.mark.parametrize(("preset", "count"), list(PUBLISHED.items()))
def test_published_sizes_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build_transformer(preset).parameters()) == count


def test_the_built_in_preset_is_small() -> None:
    with torch.device("meta"):
        assert 3e6 < sum(parameter.numel() for parameter in build_transformer("t2i-emoji").parameters()) < 10e6


def test_every_preset_is_known_by_a_condition() -> None:
    for name, sizes in PRESETS.items():
        assert ("text_width" in sizes) is name.startswith("t2i")
