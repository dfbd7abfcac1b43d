"""Two-dimensional rotary position embedding (RoFormer, arXiv 2104.09864, on an image grid), and how it is stretched."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

RotaryGrid = Literal["row_major", "reference"]
RotaryScaling = Literal["plain", "interpolation", "ntk", "by_parts", "yarn"]
Turns = Float[Tensor, "tokens half_head 2"]  # cosine and sine of each angle
BASE = 10_000.0
# of NTK-by-parts: pairs that turn less often than SLOW over the trained extent are interpolated, those that turn more
# often than FAST left alone (YaRN, arXiv 2309.00071, section 3.2)
SLOW, FAST = 1.0, 32.0


class Rotary(NamedTuple):
    """How queries and keys are turned: an angle for each pair of channels, and how much louder queries are, if so."""

    angles: Float[Tensor, "tokens half_head"]
    sharpness: Float[Tensor, " tokens"] | None = None


class Turning(NamedTuple):
    """What every block turns by: queries of self-attention, which may be louder, and all others."""

    queries: Turns
    others: Turns


def positions(height: int, width: int, grid: RotaryGrid) -> Int[Tensor, "tokens 2"]:
    """Both coordinates of token n of a `height x width` grid, tokens in row-major order.

    `row_major`: (n mod width, n div width), the true column and row. `reference`: (n mod height, n div height), which
    is what the released Transition Models weights were trained with; the two agree on squares.
    """
    n = torch.arange(height * width)
    stride = width if grid == "row_major" else height
    return torch.stack([n % stride, n // stride], dim=1)


def frequencies(pairs: int, scaling: RotaryScaling = "plain", stretch: float = 1.0) -> Float[Tensor, " pairs"]:
    """Radians a position, of each pair of channels along one axis: base^(-i / pairs), and what is done for long axes.

    Args:
        scaling: `plain` leaves them. `interpolation` divides all by the stretch (arXiv 2306.15595). `ntk` raises the
            base so that the slowest is divided by it and the fastest not. `by_parts` interpolates pairs that never
            turned once in training, leaves those that turned often, and mixes between (arXiv 2309.00071, section
            3.2); `yarn` does so and sharpens attention.
        stretch: length of the axis over the trained one; 1 and below change nothing.
    """
    own: Tensor = BASE ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    if scaling == "plain" or stretch <= 1:
        return own
    if scaling == "interpolation":
        return own / stretch
    if scaling == "ntk":  # base * s^(d / (d - 2)), where d = 2 pairs
        raised = BASE * stretch ** (pairs / max(1, pairs - 1))
        return raised ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    raise ValueError(f"{scaling} depends on the trained extent: use frequencies_by_parts")


def frequencies_by_parts(pairs: int, stretch: float, extent: int) -> Float[Tensor, " pairs"]:
    """NTK-by-parts (arXiv 2309.00071, definition 1) of an axis that had `extent` positions in training."""
    own = frequencies(pairs)
    if stretch <= 1:
        return own
    turns = extent * own / (2 * math.pi)
    kept = ((turns - SLOW) / (FAST - SLOW)).clamp(0, 1)
    return (1 - kept) * own / stretch + kept * own


def rotary(
    height: int,
    width: int,
    head_dim: int,
    grid: RotaryGrid,
    scaling: RotaryScaling = "plain",
    extent: int | None = None,
) -> Rotary:
    """Of a `height x width` grid of tokens: the first half of the head turns with the first coordinate.

    Args:
        scaling: of axes that are longer than `extent`, each by its own stretch.
        extent: tokens along one side in training.
    """
    pairs, places = head_dim // 4, positions(height, width, grid)
    turned, largest = [], 1.0
    long = (width, height) if grid == "row_major" else (height, width)  # positions of each axis
    for axis, length in zip(places.unbind(1), long, strict=True):
        stretch = 1.0 if extent is None else max(1.0, length / extent)
        largest = max(largest, stretch)
        if scaling in ("by_parts", "yarn"):
            rates = frequencies_by_parts(pairs, stretch, extent or 1)
        else:
            rates = frequencies(pairs, scaling, stretch)
        turned.append(axis.float()[:, None] * rates)
    sharpness = None
    if scaling == "yarn" and largest > 1:  # sqrt(1/t) = 0.1 ln s + 1 on queries and on keys (eq. 22); here on queries
        sharpness = torch.full((len(places),), (0.1 * math.log(largest) + 1) ** 2)
    return Rotary(torch.cat(turned, dim=1), sharpness)


def joined(parts: list[Rotary], device: torch.device) -> Turning:
    """Of several grids end to end."""
    angles = torch.cat([part.angles for part in parts])
    turns = torch.stack([angles.cos(), angles.sin()], dim=-1).to(device)
    if all(part.sharpness is None for part in parts):
        return Turning(turns, turns)
    sharpness = [torch.ones(len(part.angles)) if part.sharpness is None else part.sharpness for part in parts]
    return Turning(turns * torch.cat(sharpness).to(device)[:, None, None], turns)


def rotate(
    x: Float[Tensor, "batch tokens heads head_dim"], turns: Turns
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Turn each interleaved pair (x_2i, x_2i+1), in float32: a product of complex numbers."""
    pairs, turns = x.float().unflatten(-1, (-1, 2)), turns[:, None]
    if not torch.compiler.is_compiling():  # one pass over memory
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns)).flatten(-2).to(x.dtype)
    (even, odd), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)  # which the compiler makes one pass of
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
