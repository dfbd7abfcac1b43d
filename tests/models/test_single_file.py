"""A network of one file, released or ours."""

import json
from pathlib import Path

import pytest
import torch
from helpers import lively, text_inputs
from safetensors.torch import load_file, save_file

from anystep import TransitionTransformer2DModel
from anystep.errors import InputError


def test_released_weights_give_the_numbers_of_the_reference(numbers: Path) -> None:
    said = json.loads((numbers / "meta.json").read_text())["t2i"]["config"]
    network = TransitionTransformer2DModel.from_single_file(numbers / "t2i.weights.safetensors", config=said)
    stored = load_file(numbers / "t2i.io.safetensors")
    out = network(*(stored[f"6x10.{key}"] for key in ("x", "t", "r", "y")))
    torch.testing.assert_close(out, stored["6x10.out"], rtol=1e-5, atol=1e-5)
    assert not network.training


def test_weights_of_ours_are_loaded_by_the_config_beside_them(tmp_path: Path) -> None:
    network = lively("t2i-test", max_time_frequency=20)
    network.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    expected = network(*text_inputs())
    for config in (None, tmp_path / "model", tmp_path / "model" / "config.json", dict(network.config)):
        assert torch.equal(TransitionTransformer2DModel.from_single_file(file, config)(*text_inputs()), expected)
    half = TransitionTransformer2DModel.from_single_file(str(file), torch_dtype=torch.bfloat16)
    assert half.blocks[0].mlp.gate.weight.dtype == torch.bfloat16
    assert half.blocks[0].modulation.gate.weight.dtype == half.time_embed.linear_1.weight.dtype == torch.float32


def test_a_file_that_does_not_go_with_its_config_is_told(tmp_path: Path) -> None:
    lively("t2i-test").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model" / "other.safetensors")
    for given, config, message in (
        (alone, None, "does not say its sizes: give config"),
        (alone, {**lively("t2i-test").config, "depth": 3}, "is not of the network that config says"),
        (alone, {"depht": 3}, "is not of the network that config says"),
        (tmp_path / "model" / "other.safetensors", None, "is not of the network that config says"),
        (tmp_path / "none.safetensors", None, "none.safetensors"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            TransitionTransformer2DModel.from_single_file(given, config)
        assert "\n" not in str(caught.value)
