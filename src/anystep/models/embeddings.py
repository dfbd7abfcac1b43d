"""Embeddings of latents, times and captions."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor, nn

from anystep.models.layers import Float32Linear, Mask, SwiGLU, Vector, compute_dtype
from anystep.packing import Packing


class TimeEmbedding(nn.Module):
    """Sinusoids (cosine first) through a two-layer perceptron, in float32 throughout.

    Args:
        max_frequency: the highest frequency, in radians per unit of t; the lowest is a ten-thousandth of it.
    """

    frequencies = 128
    span = 10_000.0

    def __init__(self, width: int, max_frequency: float = 1.0) -> None:
        super().__init__()
        self.max_frequency = max_frequency
        self.linear_1 = Float32Linear(2 * self.frequencies, width)
        self.linear_2 = Float32Linear(width, width)

    def forward(self, t: Float[Tensor, " batch"]) -> Vector:
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=t.device) / self.frequencies
        angles = t.float()[:, None] * (self.max_frequency * torch.exp(-math.log(self.span) * steps))
        wave = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(functional.silu(self.linear_1(wave)))


class CaptionProjection(nn.Module):
    """The text encoder's states, projected to the width of the transformer."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width, eps=1e-5)
        self.mlp = SwiGLU(text_width, 4 * width, width)

    def forward(self, states: Float[Tensor, "batch length text"]) -> Float[Tensor, "batch length width"]:
        normed = self.norm(states.to(self.norm.weight.dtype))
        return self.mlp(normed.to(compute_dtype(self.mlp.gate) or normed.dtype))


class CaptionPool(nn.Module):
    """The mean of the text encoder's states over the tokens of a caption, through a perceptron, in float32.

    With it the whole of a caption modulates the blocks, as a class does (arXiv 2403.03206, section 4).
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width, eps=1e-5)
        self.linear_1 = Float32Linear(text_width, width)
        self.linear_2 = Float32Linear(width, width)

    def forward(self, states: Float[Tensor, "batch length text"], mask: Mask | None = None) -> Vector:
        states = states.float()
        if mask is None:
            mean = states.mean(1)
        else:
            share = mask[..., None].float()
            mean = (states * share).sum(1) / share.sum(1).clamp(min=1)  # 0 of a caption without tokens
        return self.linear_2(functional.silu(self.linear_1(self.norm(mean.to(self.norm.weight.dtype)))))


class PositionEmbedding(nn.Module):
    """Where on its canvas a token is: products of sinusoids of row and column, through a linear map, in float32.

    Rotary embeddings tell how far tokens are from each other. This one tells where they are, measured from the middle
    of the canvas in its shorter sides, so that what is drawn there keeps its place on canvases of all sizes.
    """

    turns = (0.5, 1.0, 2.0, 4.0)  # of the sinusoids over a shorter side

    def __init__(self, width: int) -> None:
        super().__init__()
        waves = 1 + 2 * len(self.turns)
        self.linear = Float32Linear(waves**2, width, bias=False)

    def waves(self, places: Float[Tensor, " side"]) -> Float[Tensor, "side waves"]:
        """1, cosines and sines at each place."""
        angles = 2 * math.pi * places[:, None] * torch.tensor(self.turns, device=places.device)
        return torch.cat([torch.ones_like(places)[:, None], angles.cos(), angles.sin()], dim=1)

    def forward(self, grids: Iterable[tuple[int, int]], device: torch.device) -> Float[Tensor, "tokens width"]:
        """The embedding of each token of several grids of rows and columns, one grid after another."""
        features = []
        for rows, columns in grids:
            down, across = (torch.arange(side, dtype=torch.float32, device=device) for side in (rows, columns))
            shorter = torch.minimum(down[-1], across[-1]) + 1
            down, across = ((each - each[-1] / 2) / shorter for each in (down, across))
            features.append(torch.einsum("rp,cq->rcpq", self.waves(down), self.waves(across)).flatten(2).flatten(0, 1))
        return self.linear(torch.cat(features))


def patchify(x: Tensor, patch: int, packing: Packing | None) -> Float[Tensor, "batch tokens pixels"]:
    """The latent pixels of each token, channels first."""
    if packing is not None:
        return x.float().flatten(1)[None]  # (N, C, p, p) -> (1, N, C p^2)
    return functional.pixel_unshuffle(x.float(), patch).flatten(2).transpose(1, 2)  # (B, C, H p, W p) -> (B, N, C p^2)


def unpatchify(out: Tensor, patch: int, rows: int, columns: int, packing: Packing | None) -> Tensor:
    """Latents from the output pixels of each token, channels last: the inverse shape of `patchify`."""
    if packing is not None:
        return out[0].unflatten(-1, (patch, patch, -1)).permute(0, 3, 1, 2)  # (N, C, p, p)
    out = out.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))  # (B, H, W, p, p, C)
    return out.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C, H p, W p)
