"""Tiles: the same image as decoded whole, without seams, and in the memory of one tile."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anystep.codecs import Codec, load_codec
from anystep.codecs.tiling import BLEND, MARGIN, Cut, decode_tiled, encode_tiled

# of the built-in codec, whose convolutions end within the margin: rounding, in units of [-1, 1]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("builtin", torch.device("cpu"))


@given(length=st.integers(1, 400), margin=st.integers(0, 12), blend=st.integers(1, 8), more=st.integers(1, 60))
def test_tiles_cover_everything_and_weigh_something_everywhere(length: int, margin: int, blend: int, more: int) -> None:
    cut, weight = Cut(2 * margin + blend + more, margin, blend), torch.zeros(length)
    for start, end in cut.spans(length):
        assert 0 <= start < end <= length
        weight[start:end] += cut.ramp(start, end, length, 1)
    assert weight.min() > 0


@torch.no_grad()
def test_tiles_decode_and_encode_as_the_whole(codec: Codec) -> None:
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(1, codec.channels, 70, 100, generator=rng)
    whole = codec.decode(latents)
    tiled = decode_tiled(codec, latents, tile=48 * codec.factor)
    assert (tiled - whole).abs().max() < TOLERANCE
    assert (encode_tiled(codec, whole, tile=48 * codec.factor) - codec.encode(whole)).abs().max() < 10 * TOLERANCE


@torch.no_grad()
def test_no_seam_is_steeper_than_elsewhere(codec: Codec) -> None:
    """Of a codec that sees all of its input: the gradient across the borders of tiles against that of other places."""
    rng = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        torch.randn(1, codec.channels, 8, 8, generator=rng), size=(96, 96), mode="bicubic"
    )

    class Global:
        """Brightness follows the mean of the input: every tile has another."""

        factor, channels, fingerprint = codec.factor, codec.channels, "global"

        def decode(self, latents: Tensor) -> Tensor:
            return codec.decode(latents) + 2 * latents.mean((1, 2, 3), keepdim=True)

        def encode(self, images: Tensor) -> Tensor:
            return images

    tiled = decode_tiled(Global(), smooth, tile=64 * codec.factor)
    steps = tiled.diff(dim=3).abs().mean((0, 1, 2))
    margin = MARGIN // codec.factor
    (_, end), (start, _) = Cut(64, margin, BLEND // codec.factor).spans(96)[:2]
    zone = slice((start + margin) * codec.factor - 1, (end - margin) * codec.factor + 1)
    assert steps[zone].mean() < 1.5 * steps.mean()
    hard = torch.cat([Global().decode(smooth[..., :48]), Global().decode(smooth[..., 48:])], 3).diff(dim=3).abs()
    assert hard.mean((0, 1, 2))[48 * codec.factor - 1] > 1.5 * steps.mean()  # what an unblended border would be


def test_a_small_image_is_one_tile(codec: Codec) -> None:
    latents = torch.randn(1, codec.channels, 8, 12)
    with torch.no_grad():
        assert torch.equal(decode_tiled(codec, latents), codec.decode(latents))


def test_every_codec_is_tiled_alike() -> None:
    latents = torch.randn(1, 3, 1300, 40)
    with torch.no_grad():
        assert (decode_tiled(load_codec("identity"), latents) - latents).abs().max() < 1e-6
