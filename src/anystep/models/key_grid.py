"""Keys and values of some tokens only, for grids much larger than a network was trained on.

Every token attends to tokens that lie evenly over the whole grid (ToDo, arXiv 2402.13573, which needs no training).
Time grows with the tokens, not with their square.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from anystep import bounds


def kept_tokens(rows: int, columns: int, side: int, device: torch.device | None = None) -> Int[Tensor, " kept"] | None:
    """Which tokens of a `rows x columns` grid give keys and values; None where all of them do.

    Args:
        side: how many along the longer side; the other has as many as its length asks for.

    Raises:
        InputError: fewer than two, or no whole number.
    """
    side = bounds.check("key_grid", side, bounds.KeyGrid)
    longest = max(rows, columns)
    if longest <= side:
        return None
    down, across = (_middles(length, -(-length * side // longest), device) for length in (rows, columns))
    return (down[:, None] * columns + across).flatten()


def _middles(length: int, parts: int, device: torch.device | None) -> Int[Tensor, " parts"]:
    """Of so many equal parts of a side."""
    return (2 * torch.arange(parts, device=device) + 1) * length // (2 * parts)
