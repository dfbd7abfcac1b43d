"""What was learned of linear layers at low rank, as part of a network.

peft and diffusers switch adapters off when others are loaded, and take all of them off at once: what makes a network
what it is must not be one of theirs. It is added to what a layer answers, whatever wraps that layer or is merged into
it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anystep.models.lora import PARTS, Lora

TERMS = "low_rank_terms"  # the part of a network that holds them


class LowRankTerm(nn.Module):
    """scale * B A x with A (rank, in) and B (out, rank), of one layer."""

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        (rank, width), self.scale = down.shape, scale
        with torch.device("meta"):
            self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, len(up), bias=False)
        self.down.weight, self.up.weight = (nn.Parameter(each, requires_grad=False) for each in (down, up))
        self._disable_adapters = False  # by the name that peft has for it, for networks that are asked without

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.up(self.down(x.to(self.down.weight.dtype))) * self.scale
        return answer


@dataclass(frozen=True)
class AddTerm:
    """After a layer is run: its term is added."""

    term: LowRankTerm

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], answer: Tensor) -> Tensor:
        return answer if self.term._disable_adapters else answer + self.term(args[0]).to(answer.dtype)


def add_terms(network: Any, lora: Lora) -> None:
    """Make an adapter part of a network, in the precision of its layers, for good."""
    terms = nn.ModuleList()
    for layer in lora.layers:
        module: Any = network.get_submodule(layer)
        module = getattr(module, "base_layer", module)
        weight = module.weight
        wide = weight.is_floating_point() and weight.element_size() > 1
        down, up = (
            lora.tensors[layer + part].to(weight.device, weight.dtype if wide else network.dtype) for part in PARTS
        )
        terms.append(LowRankTerm(down, up, lora.alphas[layer] / lora.rank(layer)))
        module.register_forward_hook(AddTerm(terms[-1]))  # type: ignore[arg-type]
    network.add_module(TERMS, terms)
