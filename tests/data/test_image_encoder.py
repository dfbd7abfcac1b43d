"""Features of frozen image encoders, for the tokens of a network's grid."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anystep.data.image_encoder import ImageEncoder, load_image_encoder
from anystep.errors import InputError


@pytest.mark.parametrize(("name", "width"), [("dinov2", 16), ("registers", 16), ("siglip", 16), ("radio", 5)])
def test_an_encoder_gives_a_vector_for_each_token_of_the_grid(
    image_encoders: dict[str, Path], name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYSTEP_ALLOW_CODE", "1")
    encoder = load_image_encoder(f"radio:{image_encoders[name]}" if name == "radio" else str(image_encoders[name]))
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    found = encoder(images, 3, 4)
    assert found.shape == (2, 12, width)
    turned = encoder(images.flip(0), 3, 4)
    torch.testing.assert_close(turned, found.flip(0))


def test_a_fingerprint_is_that_of_the_weights(image_encoders: dict[str, Path]) -> None:
    first, again, other = (load_image_encoder(str(image_encoders[name])) for name in ("dinov2", "dinov2", "registers"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    changed = load_image_encoder(str(image_encoders["dinov2"]))
    with torch.no_grad():
        changed.model.layernorm.bias[-1] += 1e-2  # the last of all
    assert changed.fingerprint != first.fingerprint


def test_what_images_are_normalised_with_is_read_and_guessed_of_dinov2_alone(
    image_encoders: dict[str, Path], tmp_path: Path
) -> None:
    images = torch.rand(1, 3, 28, 28) * 2 - 1
    encoder = load_image_encoder(str(image_encoders["siglip"]))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images, 2, 2), encoder.model(images).last_hidden_state)
    shutil.copytree(image_encoders["siglip"], tmp_path / "siglip")
    (tmp_path / "siglip" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"no preprocessor_config\.json that says what .* put it beside the weights"):
        load_image_encoder(str(tmp_path / "siglip"))
    assert not (image_encoders["dinov2"] / "preprocessor_config.json").exists()
    load_image_encoder(str(image_encoders["dinov2"]))


def test_tokens_lie_row_by_row() -> None:
    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)

    images = torch.zeros(1, 3, 8, 12)
    images[..., 4:, :4] = 1  # the lower left of 2 x 3 squares
    found = ImageEncoder(Means(), "means", 4)(images, 2, 3)
    assert found[0, :, 0].argmax() == 3


def test_code_of_a_repository_runs_only_where_the_user_allows_it(
    image_encoders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANYSTEP_ALLOW_CODE", raising=False)
    folder = shutil.copytree(image_encoders["radio"], tmp_path / "radio")
    ran = tmp_path / "ran"
    with (folder / "hubconf.py").open("a") as file:
        file.write(f"open({str(ran)!r}, 'w').close()\n")
    for spec in (f"radio:{folder}", "radio:c-radio_v3-b"):
        with pytest.raises(InputError, match=r"runs Python code from .*set ANYSTEP_ALLOW_CODE=1"):
            load_image_encoder(spec)
    assert not ran.exists()


def test_weights_that_a_file_does_not_hold_are_not_drawn_at_random(
    image_encoders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(image_encoders["dinov2"], tmp_path / "dinov2")
    weights = folder / "model.safetensors"
    save_file(dict(sorted(load_file(weights).items())[:-1]), weights, {"format": "pt"})
    with pytest.raises(InputError, match="1 weights are missing"):
        load_image_encoder(str(folder))


def test_what_is_no_encoder_is_one_line(
    tmp_path: Path, tiny_text_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYSTEP_ALLOW_CODE", "1")
    for spec in (str(tmp_path), f"radio:{tmp_path}"):
        with pytest.raises(InputError, match="no image encoder at"):
            load_image_encoder(spec)
    with pytest.raises(InputError, match="BertModel, which has no patches"):
        load_image_encoder(str(tiny_text_models["bert"]))
