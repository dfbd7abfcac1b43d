"""Attention in windows, for grids much larger than a network was trained on.

Every token attends to the window that it lies in; in every other block the windows are moved by half of their side, so
that what is in one reaches the next (Swin, arXiv 2103.14030). Time grows with the tokens, not with their square.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Of a grid of tokens.

    Attributes:
        rows, columns: of the grid.
        side: of a window, in tokens.
        moved: whether they are moved by half of their side.
    """

    rows: int
    columns: int
    side: int
    moved: bool = False

    def attend(
        self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor
    ) -> Float[Tensor, "batch tokens width"]:
        """Every window to itself, by `attend(q, k, v)` of a batch of sequences."""
        q, k, v = (each.unflatten(1, (self.rows, self.columns)) for each in (q, k, v))
        out = q.new_empty(*q.shape[:3], q.shape[3] * q.shape[4])
        for down in self.cuts(self.rows):
            for across in self.cuts(self.columns):
                place = (slice(None), slice(*down), slice(*across))
                window = attend(*(each[place].flatten(1, 2) for each in (q, k, v)))
                out[place] = window.unflatten(1, (down[1] - down[0], across[1] - across[0]))
        return out.flatten(1, 2)

    def cuts(self, length: int) -> list[tuple[int, int]]:
        """Where windows begin and end along one side."""
        starts = [0, *range(self.side // 2 if self.moved else self.side, length, self.side)]
        return list(zip(starts, [*starts[1:], length], strict=True))
