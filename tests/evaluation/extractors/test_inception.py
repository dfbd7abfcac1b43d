"""FID's network gives the features of the field's tools, bit for bit on the same weights."""

from pathlib import Path

import pytest
import torch

from anystep.errors import InputError
from anystep.evaluation.extractors.inception import FILE, FIDInception, InceptionV3, resize
from anystep.evaluation.extractors.registry import FeatureExtractor, load_extractor

# of torch-fidelity 0.4.0 with the weights and images below: (height, width), five features, their norm, two logits
RECORDED = [
    ((64, 48), [0.0, 0.0124677, 0.1241401, 0.0321717, 13.3911543], 120.4129090, [0.7505114, -18.2070694]),
    ((320, 400), [0.0, 0.0031843, 0.2758370, 0.0560968, 15.0230217], 131.2521306, [1.0095534, -20.0565357]),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the file that the field shares."""
    network = InceptionV3()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                noise = 1 + 0.5 * noise.tanh()
            elif name.endswith("bn.weight"):
                noise = 1 + 0.1 * noise
            else:
                noise = noise * ((2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.1)
            tensor.copy_(noise)
    folder = tmp_path_factory.mktemp("inception")
    torch.save(network.state_dict(), folder / FILE)
    return folder / FILE


def test_it_has_the_parameters_of_the_graph_of_2015() -> None:
    with torch.device("meta"):
        network = InceptionV3()
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960
    assert len(network.state_dict()) == 566


@pytest.mark.parametrize(("size", "features", "norm", "logits"), RECORDED)
def test_it_agrees_with_the_numbers_of_another_implementation(
    weights: Path, size: tuple[int, int], features: list[float], norm: float, logits: list[float]
) -> None:
    extractor = load_extractor(f"inception:{weights}")
    assert isinstance(extractor, FeatureExtractor)
    height, width = size
    image = ((torch.arange(3 * height * width) ** 2 // 7) % 256).to(torch.uint8).view(1, 3, height, width)
    found = extractor(image)
    torch.testing.assert_close(found[0, [0, 500, 1000, 1500, 2047]], torch.tensor(features), atol=1e-4, rtol=1e-4)
    assert found.norm().item() == pytest.approx(norm, rel=1e-4)
    answer = extractor.classify(found)
    assert answer is not None
    torch.testing.assert_close(answer[0, :2], torch.tensor(logits), atol=1e-3, rtol=1e-4)


def test_resizing_samples_at_whole_multiples() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    torch.testing.assert_close(resize(ramp, 16)[0, 0, 3], torch.tensor([i / 2 for i in range(15)] + [7.0]))
    torch.testing.assert_close(resize(ramp, 4)[0, 0, 0], torch.tensor([0.0, 2.0, 4.0, 6.0]))


def test_a_folder_may_hold_the_file(weights: Path) -> None:
    assert FIDInception(weights.parent).name == "inception"


def test_missing_and_other_weights_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no Inception weights at .*: put {FILE} there"):
        load_extractor(f"inception:{tmp_path / 'none.pth'}")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("other.pth", "text.pth"):
        with pytest.raises(InputError, match="not the Inception weights of FID") as caught:
            load_extractor(f"inception:{tmp_path / name}")
        assert "\n" not in str(caught.value)


def test_a_program_in_place_of_weights_is_refused_without_advice_to_run_it(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    torch.jit.trace(torch.nn.Identity(), torch.zeros(1)).save(str(tmp_path / "x.pt"))
    recwarn.clear()
    with pytest.raises(InputError, match=r"it holds more than weights$"):
        FIDInception(tmp_path / "x.pt")
    assert not recwarn.list
