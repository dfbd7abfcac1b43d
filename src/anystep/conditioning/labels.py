"""Class labels as a condition."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from anystep.errors import InputError


class LabelEncoder:
    """Class names or indices to labels; the null label is `len(class_names)`."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self._index = {name: index for index, name in enumerate(self.class_names)}

    def __call__(self, prompts: Sequence[str | int]) -> tuple[Int[Tensor, " batch"], None]:
        """(batch,) labels.

        Raises:
            InputError: a name or index that is not a class.
        """
        return torch.tensor([self._label(prompt) for prompt in prompts]), None

    def null(self, count: int) -> tuple[Int[Tensor, " batch"], None]:
        return torch.full((count,), len(self.class_names)), None

    def _label(self, prompt: str | int) -> int:
        text = str(prompt)
        label = self._index.get(text, int(text) if text.isdecimal() else -1)
        if not 0 <= label < len(self.class_names):
            shown = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
            raise InputError(f"unknown class {prompt!r}: a number below {len(self.class_names)}, or one of {shown}")
        return label
