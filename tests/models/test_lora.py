"""Low-rank adapters: their mathematics, and files of them."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lively, text_inputs
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from anystep.errors import InputError
from anystep.models.lora import (
    adapter_parameters,
    add_lora,
    check_lora,
    lora_of,
    parse_lora,
    read_lora,
    target_layers,
    write_lora,
)

LAYER = "blocks.0.attn.to_q"


def adapted(rank: int = 2, alpha: float = 6.0, targets: tuple[str, ...] = ("attn.to_q", "mlp.gate")) -> Any:
    network = lively("t2i-test")
    add_lora(network, rank, alpha, targets)
    return network


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained() -> None:
    x, t, r, states = text_inputs()
    expected = lively("t2i-test")(x, t, r, states)
    network = adapted()
    assert torch.equal(network(x, t, r, states), expected)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == set(adapter_parameters(network))
    assert target_layers(network, ["attn.to_q"]) == []  # what is wrapped is no linear layer any more
    layers = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn.to_q", "mlp.gate")]
    assert lora_of(network).layers == [*layers, "caption_projection.mlp.gate"]


def test_an_adapter_adds_alpha_over_rank_times_b_a(tmp_path: Path) -> None:
    network = adapted(rank=2, alpha=6.0)
    for value in adapter_parameters(network).values():
        torch.nn.init.normal_(value)
    lora, x = lora_of(network), torch.randn(3, 32)
    layer = network.get_submodule(LAYER)
    a, b = (lora.tensors[f"{LAYER}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 * x @ a.T @ b.T)
    write_lora(lora, tmp_path / "a.safetensors", {"base_model": "tiny"})
    again = read_lora(tmp_path / "a.safetensors")
    assert again.alphas == lora.alphas == dict.fromkeys(lora.layers, 6.0)
    assert all(torch.equal(value, lora.tensors[name]) for name, value in again.tensors.items())


def test_ranks_and_alphas_may_differ_between_layers() -> None:
    tensors = {}
    for place, (layer, rank) in enumerate({"a.x": 2, "b.x": 3, "c.y": 3}.items()):
        tensors |= {
            f"{layer}.lora_A.weight": torch.ones(rank, 4),
            f"{layer}.lora_B.weight": torch.ones(5 + place, rank),
        }
    lora = parse_lora(tensors, {"lora_alpha": 4, "alpha_pattern": {"^b.x": 9}})
    assert lora.alphas == {"a.x": 4.0, "b.x": 9.0, "c.y": 4.0}
    config = lora.config()
    assert (config["r"], config["lora_alpha"]) == (3, 4.0)
    assert config["rank_pattern"] == {"^a.x": 2}
    assert config["alpha_pattern"] == {"^b.x": 9.0}
    assert parse_lora(tensors).alphas == {"a.x": 2.0, "b.x": 3.0, "c.y": 3.0}
    assert parse_lora(tensors, {"lora_alpha": 6, "use_rslora": True}).alphas["a.x"] == pytest.approx(6 * 2**0.5)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_strength_of_every_layer_is_kept(rslora: bool, tmp_path: Path) -> None:
    network = lively("t2i-test")
    ranks, alphas = {"blocks.1.attn.to_q": 2, "mlp.up": 6}, {"blocks.0.attn.to_q": 1, "mlp.up": 5}
    network.add_adapter(
        LoraConfig(r=3, lora_alpha=7, target_modules=["to_q", "up"], rank_pattern=ranks, alpha_pattern=alphas,
                   use_rslora=rslora)
    )  # fmt: skip
    write_lora(lora_of(network), tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors")
    strengths = {layer: read.alphas[layer] / read.rank(layer) for layer in read.layers}
    wrapped = {name: each for name, each in network.named_modules() if isinstance(each, LoraLayer)}
    assert strengths == pytest.approx({name: each.scaling["default"] for name, each in wrapped.items()})


def test_a_model_of_peft_and_its_folder_are_read_by_the_names_of_the_network(tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=7, target_modules=["to_q"], init_lora_weights=False)
    model = get_peft_model(lively("t2i-test"), config)  # type: ignore[arg-type]
    model.save_pretrained(str(tmp_path))
    found = read_lora(tmp_path / "adapter_model.safetensors")
    for lora in (lora_of(model), found):
        check_lora(lora, lively("t2i-test"))
        assert set(lora.alphas.values()) == {7.0}
    assert all(torch.equal(value, found.tensors[name]) for name, value in lora_of(model).tensors.items())


@pytest.mark.parametrize(
    ("more", "tensor"),
    [
        ({"use_dora": True}, r"blocks\.0\.attn\.to_q\.lora_magnitude_vector"),
        ({"lora_bias": True}, r"blocks\.0\.attn\.to_q\.lora_B\.bias"),
        ({"modules_to_save": ["patch_embed"]}, r"patch_embed\.weight"),
    ],
)
def test_what_is_more_than_a_lora_is_not_taken_for_one(more: dict[str, Any], tensor: str) -> None:
    network = lively("t2i-test")
    network.add_adapter(LoraConfig(r=2, target_modules=["blocks.0.attn.to_q"], **more))
    with pytest.raises(InputError, match=f"is no LoRA of a transformer in diffusers' form: its tensor '{tensor}' is"):
        lora_of(network)


def damaged(kind: str, folder: Path) -> Path:
    """A file that holds no adapter, of that kind of damage."""
    path, good = folder / "bad.safetensors", folder / "good.safetensors"
    write_lora(lora_of(adapted()), good)
    tensors = load_file(good)
    name = next(iter(tensors))
    if kind == "pickle":
        path = folder / "bad.bin"
        path.write_bytes(pickle.dumps(tensors))
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:-100])
    elif kind == "other tensors":
        save_file({"blocks.0.weight": torch.ones(2)}, path)
    elif kind == "half":
        save_file({name: tensors[name]}, path)
    elif kind == "not finite":
        save_file({**tensors, name: tensors[name] * torch.nan}, path)
    elif kind in ("int8", "bool", "float8_e4m3fn"):
        first = tensors[name].to(getattr(torch, kind))
        save_file({**tensors, name: first}, path)
    else:
        said: dict[str, Any] = {"pattern": {"alpha_pattern": {"(a+)+$": 2}}, "alpha": {"lora_alpha": "large"}}[kind]
        save_file(tensors, path, {"lora_adapter_metadata": json.dumps(said)})
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", r"expected \.safetensors; a pickle can run code"),
        ("truncated", r"is damaged: it ends before its tensor"),
        ("other tensors", r"is no LoRA of a transformer in diffusers' form: its tensor 'blocks\.0\.weight' is none"),
        ("half", r"A and B of its layer 'blocks\.0\.attn\.to_q' do not go together"),
        ("not finite", r"numbers that are not finite"),
        ("int8", r"lora_A\.weight' holds numbers of int8: expected floating point"),
        ("bool", r"holds numbers of bool: expected floating point"),
        ("pattern", r"alpha_pattern .*expected numbers by names of layers"),
        ("alpha", r"lora_alpha 'large': expected a number"),
    ],
)
def test_what_is_no_adapter_is_refused_in_one_line(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_lora(damaged(kind, tmp_path))
    assert "\n" not in str(caught.value)


def test_narrow_floating_point_numbers_are_read(tmp_path: Path) -> None:
    tensors = read_lora(damaged("float8_e4m3fn", tmp_path)).tensors
    assert torch.float8_e4m3fn in {value.dtype for value in tensors.values()}


def test_an_adapter_of_another_network_is_told_by_its_layers() -> None:
    lora = lora_of(adapted())
    check_lora(lora, lively("t2i-test"))
    check_lora(lora, adapted())  # beside another
    wide = lively("t2i-test", hidden_size=48)
    with pytest.raises(
        InputError, match=r"another network: blocks\.0\.attn\.to_q \(32 x 32 there, 48 x 48 here\), .*more"
    ):
        check_lora(lora, wide)
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.to_q \(32 x 32 there, no such layer\)"):
        check_lora(lora, lively("t2i-test", depth=1))


def test_layers_that_a_network_does_not_have_are_no_targets() -> None:
    with pytest.raises(InputError, match=r"lora\.targets 'to_x': no linear layer"):
        add_lora(lively("t2i-test"), 2, 2.0, ["to_q", "to_x"])
    with pytest.raises(InputError, match=r"none is loaded"):
        lora_of(lively("t2i-test"))
