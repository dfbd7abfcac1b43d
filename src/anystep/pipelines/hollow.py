"""Networks without weights: they take and give tensors of the right shapes, in no memory and no time.

A pipeline of diffusers with hollow networks does all else that it does: it reads the prompts, checks the options and
the size, follows its schedule and asks its networks as often as it would. What they answer is nought.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_map

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
METHODS = ("forward", "encode", "decode")


def hollow_networks(folder: Path, index: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The networks that the index of a pipeline's folder names, by the configurations in it."""
    made = {}
    for part, kind in network_classes(index).items():
        with torch.device("meta"):
            if issubclass(kind, transformers.PreTrainedModel):
                network = kind(kind.config_class.from_pretrained(folder / part))
            else:
                network = kind.from_config(kind.load_config(folder / part))
        for name in METHODS:
            if hasattr(network, name):
                setattr(network, name, _hollow(getattr(network, name)))
        made[part] = network.eval()
    return made


def network_classes(index: Mapping[str, Any]) -> dict[str, Any]:
    """The class of each part that has weights, of those that are classes of diffusers or transformers."""
    named = {part: entry for part, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    kinds = {part: getattr(LIBRARIES.get(str(module)), str(name), None) for part, (module, name) in named.items()}
    networks = (transformers.PreTrainedModel, diffusers.ModelMixin)
    return {part: kind for part, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, networks)}


def computing_on_cpu(kind: Any) -> Any:
    """The class of a pipeline whose networks may be without data, but whose own tensors are on the CPU."""
    where = property(lambda self: torch.device("cpu"))
    return type(kind.__name__, (kind,), {"device": where, "_execution_device": where, "__module__": kind.__module__})


def _hollow(method: Any) -> Any:
    """A method of a network without data, for tensors on the CPU."""

    answers: dict[str, Any] = {}  # by all but the numbers: the next step is asked as this one is

    def without_data(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    def nought(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        arguments, options = tree_map(without_data, (arguments, options))
        asked = repr((arguments, options))  # tensors without data show their shape and type
        if asked not in answers:
            answers[asked] = method(*arguments, **options)
        return tree_map(nought, answers[asked])

    return call
