"""Two-dimensional rotary position embedding (RoFormer, arXiv 2104.09864, on an image grid)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

RotaryGrid = Literal["row_major", "reference"]
BASE = 10_000.0


def positions(height: int, width: int, grid: RotaryGrid) -> Int[Tensor, "tokens 2"]:
    """Both coordinates of token n of a `height x width` grid, tokens in row-major order.

    `row_major`: (n mod width, n div width), the true column and row. `reference`: (n mod height, n div height), which
    is what the released Transition Models weights were trained with; the two agree on squares.
    """
    n = torch.arange(height * width)
    stride = width if grid == "row_major" else height
    return torch.stack([n % stride, n // stride], dim=1)


def rotary_angles(
    height: int, width: int, head_dim: int, grid: RotaryGrid, device: torch.device | None = None
) -> Float[Tensor, "tokens half_head"]:
    """Angle of every pair of head channels: the first half of the head turns with the first coordinate."""
    pairs = head_dim // 4
    frequencies = BASE ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    angles = positions(height, width, grid).float()[:, :, None] * frequencies  # (tokens, 2, pairs)
    return angles.flatten(1).to(device)


def rotate(
    x: Float[Tensor, "batch tokens heads head_dim"], angles: Float[Tensor, "tokens half_head"]
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Turn each interleaved pair (x_2i, x_2i+1) by its angle, in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
