"""Codecs: unit-variance latents and back, from folders of diffusers autoencoders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from anystep.codecs import AutoencoderCodec, Codec, IdentityCodec, load_codec, to_uint8
from anystep.data.images import to_tensor
from anystep.errors import InputError


def images(height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL of factor 2, which has a shift and a scaling factor."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.25, shift_factor=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("kl")
    autoencoder.save_pretrained(folder)
    return folder


def test_identity_gives_back_every_pixel() -> None:
    codec = load_codec("identity")
    assert (codec.factor, codec.channels) == (1, 3)
    assert torch.equal(codec.decode(codec.encode(images())), images())


def test_gray_is_one_channel_that_decodes_to_three_equal_ones() -> None:
    codec = load_codec("identity-gray")
    latents = codec.encode(images())
    torch.testing.assert_close(latents, images().mean(1, keepdim=True))
    decoded = codec.decode(latents)
    assert decoded.shape == images().shape
    assert all(torch.equal(decoded[:, channel], latents[:, 0]) for channel in range(3))
    torch.testing.assert_close(codec.encode(decoded), latents)


def test_latent_statistics_are_taken_out_and_put_back(tiny_codec: Path) -> None:
    codec = load_codec(tiny_codec)
    assert isinstance(codec, AutoencoderCodec)
    mean = torch.tensor([0.1, 0.0, -0.2, 0.3]).view(1, -1, 1, 1)
    std = torch.tensor([0.5, 1.0, 2.0, 0.7]).view(1, -1, 1, 1)
    raw = codec.autoencoder.encode(images()).latent
    torch.testing.assert_close(codec.encode(images()), (raw - mean) / std)
    torch.testing.assert_close(codec.decode(codec.encode(images())), codec.autoencoder.decode(raw).sample)


def test_shift_and_scaling_factor_of_a_kl_autoencoder(kl_folder: Path) -> None:
    codec = load_codec(kl_folder)
    assert isinstance(codec, AutoencoderCodec)
    mode = codec.autoencoder.encode(images()).latent_dist.mode()
    torch.testing.assert_close(codec.encode(images()), (mode - 0.1) * 0.25)
    torch.testing.assert_close(codec.decode(codec.encode(images())), codec.autoencoder.decode(mode).sample)


def test_scaling_factor_alone_is_that_of_the_published_dc_ae(tiny_codec: Path) -> None:
    autoencoder = AutoencoderDC.from_pretrained(tiny_codec)
    autoencoder.register_to_config(latents_mean=None, latents_std=None, scaling_factor=0.41407)
    codec = AutoencoderCodec(autoencoder.requires_grad_(False))
    torch.testing.assert_close(codec.encode(images()), 0.41407 * autoencoder.encode(images()).latent)


@pytest.mark.parametrize(("name", "factor"), [("tiny_codec", 4), ("kl_folder", 2)])
def test_factor_and_channels_say_the_shape_of_a_latent(request: pytest.FixtureRequest, name: str, factor: int) -> None:
    codec = load_codec(request.getfixturevalue(name))
    assert (codec.factor, codec.channels) == (factor, 4)
    latents = codec.encode(images(16, 24))
    assert latents.shape == (2, 4, 16 // factor, 24 // factor)
    assert codec.decode(latents).shape == (2, 3, 16, 24)


def test_a_loaded_codec_is_frozen(tiny_codec: Path) -> None:
    codec = load_codec(tiny_codec)
    assert isinstance(codec, Codec)
    assert isinstance(codec, AutoencoderCodec)
    assert not codec.autoencoder.training
    assert not any(parameter.requires_grad for parameter in codec.autoencoder.parameters())


@pytest.mark.parametrize(("height", "width"), [(16, 18), (15, 16)])
def test_sides_that_are_no_multiples_are_one_line(tiny_codec: Path, height: int, width: int) -> None:
    with pytest.raises(InputError, match=rf"^image size {width}x{height}: both sides must be multiples of 4$"):
        load_codec(tiny_codec).encode(images(height, width))


def damage(folder: Path, kind: str) -> None:
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    content: dict[str, Any] = json.loads(config.read_text())
    tensors = load_file(weights)
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "incomplete":
        save_file(dict(sorted(tensors.items())[1:]), weights)
    elif kind == "no weights":
        weights.unlink()
    elif kind == "not JSON":
        config.write_text("{")
    elif kind == "other sizes":
        config.write_text(json.dumps({**content, "latent_channels": 8}))
    elif kind == "other class":
        config.write_text(json.dumps({**content, "_class_name": "UNet2DModel"}))


@pytest.mark.parametrize("kind", ["truncated", "incomplete", "no weights", "not JSON", "other sizes", "other class"])
def test_a_damaged_codec_is_one_line_that_names_it(tiny_codec: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(tiny_codec, tmp_path / "codec")
    damage(folder, kind)
    with pytest.raises(InputError, match=str(folder)) as caught:
        load_codec(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "/nowhere", "nobody/nothing"])
def test_an_unknown_codec_is_one_line_that_names_it(name: str) -> None:
    with pytest.raises(InputError, match=f"no autoencoder at '{name}': ") as caught:
        load_codec(name)
    assert "\n" not in str(caught.value)


def test_all_256_levels_survive_tensors() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, -1)
    tensor = to_tensor(Image.fromarray(levels))
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_uint8(tensor[None])[0].permute(1, 2, 0).numpy(), levels)


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, -0.4 / 127.5, 0.6 / 127.5, 1.0, 9.0]).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert to_uint8(values)[0, 0, 0].tolist() == [0, 0, 128, 127, 128, 255, 255]
    assert to_uint8(values.half()).dtype == torch.uint8


def test_identity_codecs_are_codecs() -> None:
    assert isinstance(IdentityCodec(), Codec)
