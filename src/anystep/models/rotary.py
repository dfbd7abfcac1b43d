"""Two-dimensional rotary position embedding (RoPE, arXiv 2104.09864, on an image grid), also for longer axes."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

RotaryGrid = Literal["row_major", "reference"]
RotaryScaling = Literal["plain", "interpolation", "ntk", "by_parts", "yarn"]
CosSin = Float[Tensor, "tokens half_head 2"]  # cosine and sine of each angle
BASE = 10_000.0
# of NTK-by-parts: pairs of channels with fewer than ALPHA turns over the trained extent are interpolated, those with
# more than BETA turns are unchanged (YaRN, arXiv 2309.00071, section 3.2)
ALPHA, BETA = 1.0, 32.0


class RopeAngles(NamedTuple):
    """The rotation of each pair of channels at each token of a grid, and the factor on queries where YaRN sets one."""

    angles: Float[Tensor, "tokens half_head"]
    attention_factor: Float[Tensor, " tokens"] | None = None


class Rope(NamedTuple):
    """Cosines and sines that blocks rotate by: those of self-attention's queries times the factor, and all others."""

    queries: CosSin
    unscaled: CosSin


def positions(height: int, width: int, grid: RotaryGrid) -> Int[Tensor, "tokens 2"]:
    """Both coordinates of token n of a `height x width` grid, tokens in row-major order.

    `row_major`: (n mod width, n div width), the true column and row. `reference`: (n mod height, n div height), which
    is what the released Transition Models weights were trained with; the two agree on squares.
    """
    n = torch.arange(height * width, device="cpu")
    stride = width if grid == "row_major" else height
    return torch.stack([n % stride, n // stride], dim=1)


def frequencies(
    pairs: int, scaling: RotaryScaling = "plain", stretch: float = 1.0, extent: int = 1
) -> Float[Tensor, " pairs"]:
    """Radians per position of each pair of channels along one axis: base^(-i / pairs), or scaled for longer axes.

    Args:
        scaling: `plain` changes nothing. `interpolation` divides all by the stretch (arXiv 2306.15595). `ntk` raises
            the base so that the slowest is divided by it and the fastest unchanged. `by_parts` (NTK-by-parts, arXiv
            2309.00071, definition 1) interpolates pairs with less than a turn in training, leaves those with many, and
            mixes between; `yarn` does the same and sharpens attention.
        stretch: length of the axis relative to the trained one; 1 and below change nothing.
        extent: number of positions in training, on which `by_parts` and `yarn` depend.
    """
    plain: Tensor = BASE ** (-torch.arange(pairs, dtype=torch.float32, device="cpu") / pairs)
    if scaling == "plain" or stretch <= 1:
        return plain
    if scaling == "interpolation":
        return plain / stretch
    if scaling == "ntk":  # base * s^(d / (d - 2)), where d = 2 pairs
        raised = BASE * stretch ** (pairs / max(1, pairs - 1))
        return raised ** (-torch.arange(pairs, dtype=torch.float32, device="cpu") / pairs)
    turns = extent * plain / (2 * math.pi)
    unchanged = ((turns - ALPHA) / (BETA - ALPHA)).clamp(0, 1)
    return (1 - unchanged) * plain / stretch + unchanged * plain


def rope_angles(
    height: int,
    width: int,
    head_dim: int,
    grid: RotaryGrid,
    scaling: RotaryScaling = "plain",
    extent: int | None = None,
) -> RopeAngles:
    """The angles of a `height x width` grid of tokens: the first half of the head rotates with the first coordinate.

    Args:
        scaling: what is done for axes that are longer than `extent`, each by its own stretch.
        extent: tokens along one side in training.
    """
    pairs, places = head_dim // 4, positions(height, width, grid)
    angles, largest = [], 1.0
    lengths = (width, height) if grid == "row_major" else (height, width)  # number of positions of each axis
    for axis, length in zip(places.unbind(1), lengths, strict=True):
        stretch = 1.0 if extent is None or scaling == "plain" else max(1.0, length / extent)
        largest = max(largest, stretch)
        angles.append(axis.float()[:, None] * frequencies(pairs, scaling, stretch, extent or 1))
    factor = None
    if scaling == "yarn" and largest > 1:  # sqrt(1/t) = 0.1 ln s + 1 on queries and on keys (eq. 22); here on queries
        factor = torch.full_like(angles[0][:, 0], (0.1 * math.log(largest) + 1) ** 2)
    return RopeAngles(torch.cat(angles, dim=1), factor)


def rope(grids: Iterable[RopeAngles], device: torch.device) -> Rope:
    """The cosines and sines of the tokens of several grids, one grid after another."""
    grids = list(grids)
    angles = torch.cat([grid.angles for grid in grids])
    unscaled = torch.stack([angles.cos(), angles.sin()], dim=-1).to(device)
    if all(grid.attention_factor is None for grid in grids):
        return Rope(unscaled, unscaled)
    factors = [
        torch.ones_like(grid.angles[:, 0]) if grid.attention_factor is None else grid.attention_factor for grid in grids
    ]
    return Rope(unscaled * torch.cat(factors).to(device)[:, None, None], unscaled)


def rotate(
    x: Float[Tensor, "batch tokens heads head_dim"], cos_sin: CosSin
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Rotate each interleaved pair of channels (x_2i, x_2i+1), in float32: a product of complex numbers."""
    pairs, cos_sin = x.float().unflatten(-1, (-1, 2)), cos_sin[:, None]
    # one pass over memory, of complex numbers, which exporters do not know
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(cos_sin)).flatten(-2).to(x.dtype)
    (even, odd), (cos, sin) = pairs.unbind(-1), cos_sin.unbind(-1)  # which the compiler makes one pass of
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
