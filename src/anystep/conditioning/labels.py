"""Class labels as a condition."""

import operator
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from anystep.bounds import shown
from anystep.errors import InputError


class LabelEncoder:
    """Encodes classes as labels; the null label is `len(class_names)`.

    A whole number, of Python, NumPy or PyTorch, is an index. Text is a name, or an index in digits where no class has
    that name; where numbers are all the names there are, it is a name alone.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        numbers = {name: index for index, name in enumerate(self.class_names)}
        self._index = {_composed(name): index for name, index in numbers.items()} | numbers
        self._numbered = all(name.isdecimal() for name in self.class_names)  # then "02" would be the class called 10

    def __call__(self, prompts: Sequence[Any] | Tensor | np.ndarray) -> tuple[Int[Tensor, " batch"], None]:
        """The labels of classes, (batch,).

        Raises:
            InputError: a name or index that is not a class.
        """
        return torch.tensor([self._label(prompt) for prompt in prompts], device="cpu"), None

    def null(self, count: int) -> tuple[Int[Tensor, " batch"], None]:
        """The null label, `count` times."""
        return torch.full((count,), len(self.class_names), device="cpu"), None

    def _label(self, prompt: Any) -> int:
        label = -1
        if isinstance(prompt, str):
            digits = prompt.isdecimal() and len(prompt) < 10 and not self._numbered
            label = self._index.get(prompt, self._index.get(_composed(prompt), int(prompt) if digits else -1))
        elif not isinstance(prompt, bool) and getattr(prompt, "dtype", None) is not torch.bool:
            with suppress(TypeError):
                label = operator.index(prompt)
        if not 0 <= label < len(self.class_names):
            names = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
            what = f"one of {names}"
            if not (self._numbered and isinstance(prompt, str)):
                what = f"a number below {len(self.class_names)}, or {what}"
            raise InputError(f"unknown class {shown(prompt)}: {what}")
        return label


def _composed(name: str) -> str:
    """A name whose accents are part of their letters: folders have them in two ways."""
    return unicodedata.normalize("NFC", name)
