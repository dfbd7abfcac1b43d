"""What turns images and captions into the rows that training reads."""

from typing import Any

import torch
from torch import Tensor

from anystep.codecs import Codec
from anystep.codecs.tiling import encode_tiled
from anystep.conditioning import TextEncoder
from anystep.conditioning.text import split_states
from anystep.data.image_encoder import ImageEncoder
from anystep.data.prepare import Encoders
from anystep.data.sizing import ResolutionLimits


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
