"""The flow-matching pipelines of diffusers whose networks can be made flow maps, and how a caption's states travel."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from anystep.bounds import shown
from anystep.errors import InputError

Family = Literal["sd3", "flux", "sana"]


@dataclass(frozen=True)
class FamilyTraits:
    """What tells one kind of transformer from another.

    Attributes:
        network, pipeline: the classes of diffusers.
        embedding: the module that embeds t.
        place: of the embedding among the positional arguments of a block.
        name: of the embedding among its named arguments.
    """

    network: str
    pipeline: str
    embedding: str
    place: int
    name: str


FAMILIES: dict[str, FamilyTraits] = {
    "sd3": FamilyTraits("SD3Transformer2DModel", "StableDiffusion3Pipeline", "time_text_embed", 2, "temb"),
    "flux": FamilyTraits("FluxTransformer2DModel", "FluxPipeline", "time_text_embed", 2, "temb"),
    "sana": FamilyTraits("SanaTransformer2DModel", "SanaPipeline", "time_embed", 4, "timestep"),
}


def family_of(transformer: Any) -> Family:
    """Of a network, or the name of the class of one or of its pipeline.

    Raises:
        InputError: another one, or SANA-Sprint, which is no flow-matching model.
    """
    name = transformer if isinstance(transformer, str) else type(transformer).__name__
    for family, traits in FAMILIES.items():
        if name in (traits.network, traits.pipeline):
            return cast(Family, family)
    known = ", ".join(traits.pipeline for traits in FAMILIES.values())
    raise InputError(f"{shown(name)} cannot be made a flow map: expected the network of a {known}")


def joined_states(
    states: Float[Tensor, "batch length joint"], pooled: Float[Tensor, "batch pooled"]
) -> Float[Tensor, "batch rows width"]:
    """One condition of token states and a pooled state, which comes first; the narrower ones end in zeros."""
    width = max(states.shape[-1], pooled.shape[-1])
    return torch.cat([pad(each, (0, width - each.shape[-1])) for each in (pooled[:, None], states)], 1)
