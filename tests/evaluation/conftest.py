"""Feature extractors of a moment."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


class Pooled(nn.Module):
    """Means over a 4 x 4 grid of each channel, 48 features."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, (4, 4)).flatten(1)


@pytest.fixture(scope="session")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript file of it."""
    path = tmp_path_factory.mktemp("extractor") / "pooled.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Pooled()).save(str(path))
    return path
