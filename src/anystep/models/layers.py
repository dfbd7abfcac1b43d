"""Layers that every part of the transformer is built of."""

import torch
import torch.nn.functional as functional
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anystep.packing import Packing

Tokens = Float[Tensor, "batch tokens width"]
Vector = Float[Tensor, "images width"]
PerToken = Float[Tensor, "batch #tokens width"]
Mask = Bool[Tensor, "batch length"]


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 whatever the network's dtype and autocast.

    Times, modulation, patch embedding and head go through it: they are under 1 % of the operations, and with them in
    bfloat16 the finite difference of the objective is mostly rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(x.float(), self.weight.float(), bias)


def compute_dtype(layer: nn.Module) -> torch.dtype | None:
    """The dtype of the input that a linear layer needs; None where it takes any, as with quantised weights.

    Its weights may be stored in another dtype: `enable_layerwise_casting` keeps them in 8 bits between calls.
    """
    layer = getattr(layer, "base_layer", layer)  # of a layer that an adapter has wrapped
    hook = getattr(getattr(layer, "_diffusers_hook", None), "hooks", {}).get("layerwise_casting")
    declared = getattr(layer if hook is None else hook, "compute_dtype", None)
    stored = getattr(layer.weight, "dtype", None)  # a method, of torch.ao's layers
    plain = stored is not None and stored.is_floating_point and stored.itemsize > 1
    return declared if declared is not None else stored if plain else None


class SwiGLU(nn.Module):
    """fc2(silu(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, out: int, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.gate = linear(width, hidden)
        self.up = linear(width, hidden)
        self.down = linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Modulation(SwiGLU):
    """Shifts, scales and gates from the conditioning vector through a low-rank bottleneck, in float32."""

    def __init__(self, width: int, rank: int, parts: int) -> None:
        super().__init__(width, rank, parts * width, Float32Linear)


def spread(vector: Vector, packing: Packing | None) -> PerToken:
    """A vector of each image, broadcastable to the image's tokens: (B, 1, D), or (1, N, D) of a packed batch."""
    return vector[:, None] if packing is None else packing.spread(vector)


def modulate(x: Tokens, shift: PerToken, scale: PerToken) -> Tokens:
    return x * (1 + scale) + shift
