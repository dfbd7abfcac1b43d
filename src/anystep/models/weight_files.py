"""Files of weights that somebody else wrote, read as plain tensors by name, and without a copy in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from anystep.bounds import shown
from anystep.errors import InputError, first_line
from anystep.files import check_regular
from anystep.model_folder import count_tensors

PREFIXES = ("module.", "_orig_mod.", "model.")  # what DDP, `torch.compile` and trainers put before every name
NESTED = 2  # how deep tensors lie in sections of a file


@dataclass(frozen=True)
class Weights:
    """Tensors by name, mapped from the file: their pages come into memory when they are read.

    Attributes:
        path: of the file.
        section: of the file that they were in, such as `ema`; "" where they are all that it holds.
        prefix: what was taken off every name.
    """

    path: Path
    tensors: dict[str, Tensor]
    section: str = ""
    prefix: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_weights(path: Path, section: str | None = None) -> Weights:
    """Read a `.safetensors` file, or a `.bin`, `.pt` or `.pth` file, of which nothing but plain values is read.

    Args:
        section: which of several sets of weights in the file, as `ema` or `checkpoint.model`.

    Raises:
        InputError: unreadable, a pickle with more than plain values in it, without tensors, or with several sets of
            them of which none is chosen.
    """
    content = _content(path)
    sections = {".".join(keys): tensors for keys, tensors in _sections(content)}
    if section is None:
        if not sections:
            raise InputError(f"{str(path)!r} does not hold tensors by name")
        if len(sections) > 1:
            raise InputError(f"{str(path)!r} holds {_listed(sections)}: pick one with --section")
        section = next(iter(sections))
    if section not in sections:
        raise InputError(f"section {shown(section)}: {str(path)!r} holds {_listed(sections)}")
    tensors, prefix = sections[section], ""
    while found := next((each for each in PREFIXES if all(name.startswith(each) for name in tensors)), ""):
        tensors, prefix = {name.removeprefix(found): tensor for name, tensor in tensors.items()}, prefix + found
    return Weights(path, tensors, section, prefix)


def check_numbers(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise `InputError` where a tensor of `source` holds no weights: whole numbers, or some that are not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{source}: its tensor {shown(name)} holds numbers of {kind}: expected floating point")
        if not bool(tensor.float().isfinite().all()):  # the narrow kinds do not know of it
            raise InputError(f"{source}: its tensor {shown(name)} holds numbers that are not finite")


def _content(path: Path) -> Any:
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            count_tensors(path)
            return load_file(path)
        with path.open("rb") as file:
            mapped = file.read(2) == b"PK"  # of the earlier format, which is no archive, nothing can be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, OSError, EOFError, ValueError) as error:
        raise InputError(f"cannot read weights {str(path)!r}: {first_line(error)}") from error
    except Exception as error:  # pickle raises many kinds; all of them mean the file is not plain weights
        raise InputError(
            f"{str(path)!r} is not a plain file of weights ({type(error).__name__}): a pickle can run code when it is "
            "opened, so that nothing else is read from it"
        ) from error


def _sections(content: Any, keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The mappings in a file that hold tensors by name, and the keys that lead to each."""
    if not isinstance(content, Mapping) or len(keys) > NESTED:
        return []
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) > 1 and len(tensors) == len(content):
        return [(keys, tensors)]
    return [found for name, value in content.items() for found in _sections(value, (*keys, str(name)))]


def _listed(sections: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The sets of weights of a file in words."""
    words = [f"{name or 'weights'} ({len(tensors)} tensors)" for name, tensors in sections.items()]
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
