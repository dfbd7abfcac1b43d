"""Released weights: same names in, same numbers out, and clear words when they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anystep.errors import InputError
from anystep.models import load_reference_transformer
from anystep.models.reference import (
    convert_reference_names,
    detect_options,
    fitted_options,
    restore_reference_names,
)
from anystep.models.released import network_options

CASES = [("t2i", "8x8"), ("t2i", "6x10"), ("c2i", "8x8"), ("c2i", "4x12"), ("c2i_shared_r", "8x8")]


def options(numbers: Path, name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((numbers / "meta.json").read_text())[name]["config"]
    return config


@pytest.mark.parametrize(("name", "size"), CASES)
def test_the_reference_gives_the_same_output_on_any_aspect_ratio(numbers: Path, name: str, size: str) -> None:
    network = load_reference_transformer(numbers / f"{name}.weights.safetensors", options(numbers, name))
    stored = load_file(numbers / f"{name}.io.safetensors")
    inputs = [stored[f"{size}.{key}"] for key in ("x", "t", "r", "y")]
    out, features = network(*inputs, return_features=True)
    torch.testing.assert_close(out, stored[f"{size}.out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, stored[f"{size}.zs"], rtol=1e-5, atol=1e-5)
    assert torch.equal(network(*inputs), out)


def test_the_row_major_grid_differs_off_square_only(numbers: Path) -> None:
    network = load_reference_transformer(numbers / "t2i.weights.safetensors", options(numbers, "t2i"))
    stored = load_file(numbers / "t2i.io.safetensors")
    network.register_to_config(rope_grid="row_major")
    for size, same in (("8x8", True), ("6x10", False)):
        out = network(*(stored[f"{size}.{key}"] for key in ("x", "t", "r", "y")))
        assert torch.allclose(out, stored[f"{size}.out"], atol=1e-5) is same


@pytest.mark.parametrize("name", ["t2i", "c2i", "c2i_shared_r"])
def test_shapes_tell_the_options_of_a_network(numbers: Path, name: str) -> None:
    weights = load_file(numbers / f"{name}.weights.safetensors")
    shapes = {key: tuple(each.shape) for key, each in weights.items()}
    found, said = fitted_options(shapes, {}, ""), network_options(options(numbers, name))
    untold = {"sample_size", "interval_condition", "class_dropout_prob", "encoder_depth"}
    assert {key: found[key] for key in said.keys() - untold} == {key: said[key] for key in said.keys() - untold}


@pytest.mark.parametrize(("width", "ratio"), [(192, 3.0), (1152, 4.0), (768, 2.6), (33, 1.9)])
def test_the_ratio_of_hidden_widths_is_one_that_gives_the_width_that_is_there(width: int, ratio: float) -> None:
    hidden = int(width * ratio) * 2 // 3
    shapes = {
        "x_embedder.proj.weight": (width, 4, 2, 2), "final_layer.linear.weight": (16, width),
        "blocks.0.attn.qkv.weight": (3 * width, width), "blocks.0.mlp.fc1_g.weight": (hidden, width),
        "blocks.0.adaLN_modulation.fc1_g.weight": (8, width), "y_embedder.norm.weight": (24,),
    }  # fmt: skip
    assert int(width * detect_options(shapes)["mlp_ratio"]) * 2 // 3 == hidden
    assert fitted_options(shapes, {"mlp_ratio": ratio}, "a file")["mlp_ratio"] == ratio


@pytest.mark.parametrize("name", ["t2i", "c2i", "c2i_shared_r"])
def test_names_that_are_converted_and_restored_are_the_same(numbers: Path, name: str) -> None:
    weights = load_file(numbers / f"{name}.weights.safetensors")
    patch = options(numbers, name)["patch_size"]
    shuffled = dict(sorted(convert_reference_names(weights).items()))
    restored = restore_reference_names(shuffled, patch)
    assert restored.keys() == weights.keys()
    assert all(torch.equal(restored[key], weights[key]) for key in weights)


def test_names_that_do_not_fit_are_listed(numbers: Path, tmp_path: Path) -> None:
    weights = load_file(numbers / "c2i.weights.safetensors")
    weights["blocks.0.surprise.weight"] = weights.pop("final_layer.linear.bias")
    weights["t_embedder.mlp.0.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(InputError) as caught:
        load_reference_transformer(tmp_path / "odd.safetensors", options(numbers, "c2i"))
    text = str(caught.value)
    assert "missing ['final_layer.linear.bias']" in text
    assert "blocks.0.surprise.weight" in text
    assert "time_embed.linear_1.bias (3,) instead of (48,)" in text
    assert "\n" not in text


def test_bad_files_and_options_are_one_line(numbers: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown network options \['dept'\]"):
        load_reference_transformer(numbers / "c2i.weights.safetensors", {**options(numbers, "c2i"), "dept": 3})
    with pytest.raises(InputError, match="these weights are not those of the options: they have depth 3, not 4"):
        load_reference_transformer(numbers / "c2i.weights.safetensors", {**options(numbers, "c2i"), "depth": 4})
    content = (numbers / "c2i.weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is damaged: it ends before its tensor"):
        load_reference_transformer(tmp_path / "cut.safetensors", options(numbers, "c2i"))
