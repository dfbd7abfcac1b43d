"""Embeddings of latents, times and captions."""

import math

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor, nn

from anystep.models.layers import Float32Linear, SwiGLU, Vector, compute_dtype
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
