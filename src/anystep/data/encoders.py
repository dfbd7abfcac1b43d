"""What turns images and captions into the rows that training reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anystep.codecs import Codec
from anystep.codecs.tiling import encode_tiled
from anystep.conditioning import TextEncoder
from anystep.conditioning.text import split_states
from anystep.data.image_encoder import ImageEncoder
from anystep.data.sizing import ResolutionLimits

MAX_BATCH = 32  # images that are read and encoded together
MAX_BATCH_PIXELS = MAX_BATCH * 512 * 512  # and fewer where they have more pixels than this


@dataclass(frozen=True)
class Encoders:
    """What makes the fields of a record.

    Attributes:
        latent: images (batch, 3, height, width) in [-1, 1], of one size, to latents.
        made_by: fingerprints of all of them, and of what else the numbers depend on.
        dtype: latents are kept in.
        mirror: whether to keep the latents of the mirrored images too.
        captions: called with the captions of a batch, to cache what they become elsewhere.
        text: captions to the token states of each, to be kept in the shards.
        features: images to one vector a token of the network.
        area: pixels of the largest images.
    """

    latent: Callable[[Tensor], Tensor]
    made_by: Mapping[str, Any]
    dtype: str = "float32"
    mirror: bool = False
    captions: Callable[[Sequence[str]], None] = lambda captions: None
    text: Callable[[Sequence[str]], list[Tensor]] | None = None
    features: Callable[[Tensor], Tensor] | None = None
    area: int = 512 * 512

    @property
    def batch(self) -> int:
        """Images that are read and encoded together."""
        return max(1, min(MAX_BATCH, MAX_BATCH_PIXELS // self.area))


def make_encoders(
    codec: Codec,
    size: int | ResolutionLimits,
    device: torch.device,
    text: TextEncoder | None = None,
    features: ImageEncoder | None = None,
    patch: int = 1,
    **options: Any,
) -> Encoders:
    """What prepares images of a size for training; `text` and `features` only where they shall be kept.

    Args:
        patch: latent pixels along one side of a token of the network, whose grid `features` are for.
        options: of `Encoders`.
    """
    made_by: dict[str, Any] = {
        "codec": codec.fingerprint,
        "size": str(size) if isinstance(size, ResolutionLimits) else size,
    }
    token = codec.factor * patch  # pixels along its side
    if text is not None:
        made_by["text_encoder"] = text.fingerprint
    if features is not None:
        grid = "own shape" if isinstance(size, ResolutionLimits) else f"{size // token}x{size // token}"
        made_by["features"] = f"{features.fingerprint} {grid}"
        features.model.to(device)

    def featured(images: Tensor) -> Tensor:
        assert features is not None
        return features(images.to(device), images.shape[2] // token, images.shape[3] // token)

    return Encoders(
        latent=lambda images: encode_tiled(codec, images.to(device)),
        made_by=made_by,
        text=None if text is None else lambda captions: split_states(*text(captions)),
        features=None if features is None else featured,
        area=size.area if isinstance(size, ResolutionLimits) else size**2,
        **options,
    )
