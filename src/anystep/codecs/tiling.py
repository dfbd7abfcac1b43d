"""Encoding and decoding in overlapping tiles: memory of one tile, whatever the size of the image.

A tile's outermost `MARGIN` is thrown away, because the codec saw an edge there that the image does not have; inside it
neighbours are blended over `BLEND`. A codec of convolutions that reach no further than the margin gives what it gives
for the whole image, to rounding; one whose attention or normalisation sees all of its input (DC-AE, the KL
autoencoders) gives nearly that.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.codecs.codec import Codec

# in pixels of the latent
TILE, MARGIN, BLEND = 128, 12, 8


def decode_tiled(
    codec: Codec, latents: Float[Tensor, "1 channels rows columns"], tile: int = TILE
) -> Float[Tensor, "1 3 height width"]:
    """The image of one latent in [-1, 1], on the CPU, decoded in tiles of `tile` latent pixels where it is larger."""
    return _tiled(codec.decode, latents, tile, 1, codec.factor)


def encode_tiled(
    codec: Codec, images: Float[Tensor, "1 3 height width"], tile: int = TILE
) -> Float[Tensor, "1 channels rows columns"]:
    """The latent of one image, encoded in tiles that have `tile` latent pixels along one side where it is larger."""
    return _tiled(codec.encode, images, tile, codec.factor, 1)


def _tiled(work: Callable[[Tensor], Tensor], whole: Tensor, tile: int, before: int, after: int) -> Tensor:
    """`work` on tiles; a latent pixel is `before` pixels of what comes in and `after` of what goes out."""
    rows, columns = whole.shape[2] // before, whole.shape[3] // before
    if max(rows, columns) <= tile:
        return work(whole).cpu()
    total: Tensor | None = None
    weight = torch.zeros(1, 1, rows * after, columns * after)
    for top, bottom in spans(rows, tile):
        for left, right in spans(columns, tile):
            part = work(whole[:, :, top * before : bottom * before, left * before : right * before]).float().cpu()
            down = ramp(top, bottom, rows, after)[:, None]
            share = down * ramp(left, right, columns, after)[None]
            if total is None:
                total = part.new_zeros(1, part.shape[1], rows * after, columns * after)
            place = (..., slice(top * after, bottom * after), slice(left * after, right * after))
            total[place] += part * share
            weight[place] += share
    assert total is not None
    return total.div_(weight)


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin and end along one side: they overlap by two margins and a blend, and the last ends with it."""
    step = tile - 2 * MARGIN - BLEND
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, step), length - tile]
    return [(start, start + tile) for start in starts]


def ramp(start: int, end: int, length: int, scale: int) -> Float[Tensor, " pixels"]:
    """How much a tile weighs along one side: nothing in its margins, and rising from there over the blend.

    The edges of the image itself have no margin.
    """
    place = torch.arange((end - start) * scale, dtype=torch.float32) + 0.5
    weight = torch.ones_like(place)
    if start > 0:
        weight = torch.minimum(weight, ((place - MARGIN * scale) / (BLEND * scale)).clamp(0, 1))
    if end < length:
        weight = torch.minimum(weight, ((len(place) - place - MARGIN * scale) / (BLEND * scale)).clamp(0, 1))
    return weight
