"""The Inception v3 of FID (TensorFlow's graph of 2015-12-05), from the weights that the field's PyTorch tools share.

The file is `pt_inception-2015-12-05-6726825d.pth`, also distributed as `weights-inception-2015-12-05-6726825d.pth`.
Images are resized as that graph does, which is neither of PyTorch's bilinear conventions.
"""

import pickle
import warnings
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from anystep.errors import InputError
from anystep.fingerprint import file_digest

FILE = "pt_inception-2015-12-05-6726825d.pth"
SIDE = 299
WIDTH = 2048
Size = int | tuple[int, int]


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU; padded so that a stride of 1 keeps the size, where `same`."""

    def __init__(self, inputs: int, outputs: int, size: Size = 1, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def mean_pool(x: Tensor) -> Tensor:
    """3 x 3, of the pixels there are: TensorFlow does not count the padding."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64)
        self.branch5x5_1, self.branch5x5_2 = Convolution(inputs, 48), Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(inputs, 64)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Convolution(64, 96, 3), Convolution(96, 96, 3)
        self.branch_pool = Convolution(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(mean_pool(x))]
        return torch.cat(parts, 1)


class BlockB(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, 2, same=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Convolution(inputs, 64), Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, 2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Convolution(inputs, 192)
        self.branch7x7_1, self.branch7x7_2 = Convolution(inputs, inner), Convolution(inner, inner, row)
        self.branch7x7_3 = Convolution(inner, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Convolution(inputs, inner), Convolution(inner, inner, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Convolution(inner, inner, row), Convolution(inner, inner, column)
        self.branch7x7dbl_5 = Convolution(inner, 192, row)
        self.branch_pool = Convolution(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(mean_pool(x))], 1)


class BlockD(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Convolution(inputs, 192), Convolution(192, 320, 3, 2, same=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Convolution(inputs, 192), Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = Convolution(192, 192, 3, 2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, functional.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """The last block pools by maximum: a slip of the graph of 2015 that FID has kept."""

    def __init__(self, inputs: int, last: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.last = last
        self.branch1x1 = Convolution(inputs, 320)
        self.branch3x3_1 = Convolution(inputs, 384)
        self.branch3x3_2a, self.branch3x3_2b = Convolution(384, 384, row), Convolution(384, 384, column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Convolution(inputs, 448), Convolution(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Convolution(384, 384, row), Convolution(384, 384, column)
        self.branch_pool = Convolution(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.last else mean_pool(x)
        parts = [
            self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled),
        ]  # fmt: skip
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """(batch, 3, 299, 299) in [-1, 1) to the 2048 pooled features. Module names are those of the weights' file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(WIDTH, last=True)
        self.fc = nn.Linear(WIDTH, 1008)

    def forward(self, x: Float[Tensor, "batch 3 299 299"]) -> Float[Tensor, "batch 2048"]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def resize(images: Float[Tensor, "batch channels height width"], side: int) -> Float[Tensor, "batch channels _ _"]:
    """Bilinear as TensorFlow 1 does it: pixel i samples input pixel i * (input / output), and nothing is averaged."""

    def along(x: Tensor, dimension: int) -> Tensor:
        count = x.shape[dimension]
        # float32, as the graph computes it: where a product falls just below a whole number matters
        place = torch.arange(side, dtype=torch.float32, device=x.device) * torch.tensor(count / side).float()
        low = place.floor().long()
        high, share = (low + 1).clamp(max=count - 1), place - low
        shape = [1] * x.ndim
        shape[dimension] = side
        first, second = x.index_select(dimension, low), x.index_select(dimension, high)
        return first + (second - first) * share.view(shape)

    return along(along(images, 3), 2)


class FIDInception:
    """The features that FID is measured on, by the weights in a file, or in the folder that holds it.

    Raises `InputError`: no such file, or other weights.
    """

    name = "inception"
    classifies = True
    width = WIDTH

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"no Inception weights at {str(path)!r}: put {FILE} there")
        network = InceptionV3()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that it is TorchScript: refused, in our words
                network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
            # what torch says of a file that it refuses is how to run the code in it
            reason = str(error).split("\n")[0] if "weights_only" not in str(error) else "it holds more than weights"
            raise InputError(f"{path}: not the Inception weights of FID ({FILE}): {reason}") from None
        self.device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(device)
        self.digest = file_digest(path)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2048"]:
        features: Tensor = self._network((resize(images.to(self.device).float(), SIDE) - 128) / 128)
        return features

    @torch.no_grad()
    def classify(self, features: Float[Tensor, "batch 2048"]) -> Float[Tensor, "batch 1008"]:
        """Logits without the bias, as the Inception score has always been computed."""
        return features.to(self.device) @ self._network.fc.weight.T
