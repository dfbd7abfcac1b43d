"""Downsampled keys and values of self-attention, for grids much larger than a network was trained on.

Every token attends to tokens that lie evenly over the whole grid (ToDo, arXiv 2402.13573, which needs no training).
Time grows with the number of tokens instead of its square.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from anystep import bounds


def kv_tokens(rows: int, columns: int, side: int, device: torch.device | None = None) -> Int[Tensor, " keys"] | None:
    """The indices of the tokens of a `rows x columns` grid that give keys and values; None where all of them do.

    Args:
        side: number of these tokens along the longer side of the grid; the other side has them in proportion.

    Raises:
        InputError: `side` is below two, or no whole number.
    """
    side = bounds.check("key_grid", side, bounds.KeyGrid)
    longest = max(rows, columns)
    if longest <= side:
        return None
    down, across = (_midpoints(length, -(-length * side // longest), device) for length in (rows, columns))
    return (down[:, None] * columns + across).flatten()


def _midpoints(length: int, parts: int, device: torch.device | None) -> Int[Tensor, " parts"]:
    """The middle position of each of `parts` equal parts of a side."""
    return (2 * torch.arange(parts, device=device) + 1) * length // (2 * parts)
