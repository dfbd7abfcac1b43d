"""Released weights: same names in, same numbers out, and clear words when they do not fit."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anystep.errors import InputError
from anystep.models import load_reference_transformer

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


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_plain_torch_files_are_read_without_running_code(numbers: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(load_file(numbers / "c2i.weights.safetensors"), path)
    assert load_reference_transformer(path, options(numbers, "c2i")).config.depth == 3

    class Trap:
        def __reduce__(self) -> Any:
            return print, ("code ran",)

    torch.save({"weights": Trap()}, path)
    with pytest.raises(InputError, match=r"not a plain file of weights .*can run code"):
        load_reference_transformer(path, options(numbers, "c2i"))


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
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        load_reference_transformer(tmp_path / "none.safetensors", options(numbers, "c2i"))
    content = (numbers / "c2i.weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is damaged: it ends before its tensor"):
        load_reference_transformer(tmp_path / "cut.safetensors", options(numbers, "c2i"))
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(InputError, match="does not hold tensors by name"):
        load_reference_transformer(tmp_path / "list.bin", options(numbers, "c2i"))
    os.mkfifo(tmp_path / "fifo.bin")
    with pytest.raises(InputError, match="it is a FIFO"):
        load_reference_transformer(tmp_path / "fifo.bin", options(numbers, "c2i"))
