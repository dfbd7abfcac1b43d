"""Encoding and decoding in overlapping tiles, in the memory of one tile whatever the size of the image.

The outermost `MARGIN` of a tile is discarded, because the codec saw an edge there that the image does not have; inside
it neighbours are blended over `BLEND`. For a codec of convolutions that reach no further than the margin the result is
that of the whole image, up to rounding; it is nearly that where attention or normalisation sees all of the input
(DC-AE, the KL autoencoders).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.codecs.codec import Codec

# in image pixels
TILE, MARGIN, BLEND = 1024, 96, 64


def decode_tiled(
    codec: Codec, latents: Float[Tensor, "batch channels rows columns"], tile: int = TILE
) -> Float[Tensor, "batch 3 height width"]:
    """Images in [-1, 1]; those larger than `tile` pixels one at a time, in tiles, and on the CPU."""
    return _tiled(codec.decode, latents, tile, codec.factor, 1, codec.factor)


def encode_tiled(
    codec: Codec, images: Float[Tensor, "batch 3 height width"], tile: int = TILE
) -> Float[Tensor, "batch channels rows columns"]:
    """Latents; those of images larger than `tile` pixels one at a time, in tiles, and on the CPU."""
    return _tiled(codec.encode, images, tile, codec.factor, codec.factor, 1)


def _tiled(work: Callable[[Tensor], Tensor], batch: Tensor, tile: int, factor: int, before: int, after: int) -> Tensor:
    """`work` on tiles; a latent pixel is `before` pixels of the input and `after` pixels of the output."""
    cut = Cut.of(factor, tile)
    if max(batch.shape[2:]) // before <= cut.tile:
        return work(batch)
    return torch.cat([_one_tiled(work, whole[None], cut, before, after) for whole in batch])


def _one_tiled(work: Callable[[Tensor], Tensor], whole: Tensor, cut: "Cut", before: int, after: int) -> Tensor:
    rows, columns = whole.shape[2] // before, whole.shape[3] // before
    total: Tensor | None = None
    weight = torch.zeros(1, 1, rows * after, columns * after, dtype=torch.float32, device="cpu")
    for top, bottom in cut.spans(rows):
        for left, right in cut.spans(columns):
            part = work(whole[:, :, top * before : bottom * before, left * before : right * before]).float().cpu()
            down = cut.ramp(top, bottom, rows, after)[:, None]
            blend = down * cut.ramp(left, right, columns, after)[None]
            if total is None:
                total = part.new_zeros(1, part.shape[1], rows * after, columns * after)
            place = (..., slice(top * after, bottom * after), slice(left * after, right * after))
            total[place] += part * blend
            weight[place] += blend
    assert total is not None
    return total.div_(weight)


class Cut(NamedTuple):
    """How a side is cut into tiles, in latent pixels."""

    tile: int
    margin: int
    blend: int

    @classmethod
    def of(cls, factor: int, tile: int = TILE) -> "Cut":
        """The cut for a codec of this factor and tiles of `tile` image pixels."""
        return cls(tile // factor, -(-MARGIN // factor), -(-BLEND // factor))

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Start and end of each tile: tiles overlap by two margins and a blend, and the last ends with the side."""
        step = self.tile - 2 * self.margin - self.blend
        if length <= self.tile:
            return [(0, length)]
        starts = [*range(0, length - self.tile, step), length - self.tile]
        return [(start, start + self.tile) for start in starts]

    def ramp(self, start: int, end: int, length: int, scale: int) -> Float[Tensor, " pixels"]:
        """The weight of a tile at each pixel: zero in its margins, and rising from there over the blend.

        The edges of the image itself have no margin.
        """
        place = torch.arange((end - start) * scale, dtype=torch.float32, device="cpu") + 0.5
        weight = torch.ones_like(place)
        if start > 0:
            weight = torch.minimum(weight, ((place - self.margin * scale) / (self.blend * scale)).clamp(0, 1))
        if end < length:
            left = len(place) - place - self.margin * scale
            weight = torch.minimum(weight, (left / (self.blend * scale)).clamp(0, 1))
        return weight
