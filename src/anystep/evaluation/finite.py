"""Numbers are checked where they enter, so that one that is not finite is told with where it comes from."""

from collections.abc import Sequence

from torch import Tensor

from anystep.errors import InputError


def check_finite(values: Tensor, what: str, names: Sequence[str] | Sequence[int]) -> None:
    """Raise `InputError` where a row of `values` holds a number that is not finite.

    Args:
        what: gave the values.
        names: of the rows; those that are numbers are numbers of images.
    """
    wrong = (~values.isfinite().flatten(1).all(1)).nonzero().flatten().tolist() if len(values) else []
    if wrong:
        first = names[wrong[0]]
        named = first if isinstance(first, str) else f"image {first}"
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{what} gives numbers that are not finite, of {named}{others}")
