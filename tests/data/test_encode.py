"""What cannot be stored is left out, and says so."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import encode, save_image
from torch import Tensor

from anystep.data.encode import Encoders
from anystep.data.folders import ImageFolderSource
from anystep.data.prepare import prepare


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(8):
        save_image(tmp_path / "p" / f"{number}.png", f"number {number}", (8, 8), (10 * number, 0, 0))
    return tmp_path / "p"


@pytest.mark.parametrize(
    ("value", "dtype", "reason"),
    [
        (1e5, "float16", r"its latent\.npy reaches 1e\+05, too much for float16: --dtype float32 keeps it"),
        (float("inf"), "float32", r"its latent\.npy is not finite"),
        (float("nan"), "float16", r"its latent\.npy is not finite"),
        (1e5, "float32", None),
    ],
)
def test_latents_that_are_not_finite_are_left_out(
    pictures: Path, tmp_path: Path, value: float, dtype: str, reason: str | None
) -> None:
    def spoilt(images: Tensor) -> Tensor:
        latents = images[:, :, ::4, ::4].clone()
        latents[images[:, 0, 0, 0] > -0.6, 0, 0, 0] = value
        return latents

    encoders = Encoders(spoilt, {}, dtype=dtype)
    shards = prepare(ImageFolderSource(pictures, 8), tmp_path / "out", encoders)
    assert len(shards) + len(shards.stats.broken) == 8
    assert all(torch.isfinite(shards[number].latent).all() for number in range(len(shards)))
    if reason is None:
        assert len(shards) == 8
    else:
        assert shards.stats.broken
        assert all(re.search(reason, broken) for broken in shards.stats.broken)


def test_states_that_half_precision_cannot_hold_are_kept_whole(pictures: Path, tmp_path: Path) -> None:
    def text(captions: Any) -> list[Tensor]:
        return [torch.full((2, 3), {"3": 1e5, "4": float("nan")}.get(each[-1], 1.5)) for each in captions]

    shards = prepare(ImageFolderSource(pictures, 8), tmp_path / "out", Encoders(encode, {}, text=text))
    assert shards.stats.broken == ["4.png: the states of its caption are not finite: the text encoder cannot encode it"]
    states = [shards[number].text for number in range(7)]
    assert [float(each[0].max()) for each in states if each is not None] == [1.5, 1.5, 1.5, 1e5, 1.5, 1.5, 1.5]
