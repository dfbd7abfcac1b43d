"""The interface of conditioning."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Conditioner(Protocol):
    """Turns prompts into what the network takes as `condition` and `condition_mask`."""

    def __call__(self, prompts: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """One row a prompt; the mask is true where a row is not padding, None where nothing is padded."""
        ...

    def null(self, count: int) -> tuple[Tensor, Tensor | None]:
        """`count` rows of the empty condition."""
        ...
