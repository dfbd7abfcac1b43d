"""Representation alignment (REPA, arXiv 2410.06940): hidden states are pulled to the features of an image encoder."""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from anystep.packing import Packing
from anystep.transport import Times


def alignment_loss(projected: Tensor, features: Tensor, packing: Packing | None = None) -> Times:
    """The mean cosine distance of each sample between projected hidden states and features, both (..., tokens, width).

    Args:
        projected: hidden states of the network through its projector, as `return_features` gives them.
        features: those of a frozen image encoder on the same grid of tokens.
        packing: which token belongs to which sample, in a packed batch.
    """
    distance = 1 - cosine_similarity(projected, features.to(projected), dim=-1)
    return distance.mean(1) if packing is None else packing.mean(distance)
