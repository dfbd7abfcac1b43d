"""Released weights through the command into a folder, out of it as pictures with the reference's numbers, and back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import REFERENCE_NETWORKS, TRAJECTORIES, GivenStates, opened, reference_options
from safetensors.torch import load_file, save_file
from torch import Tensor

from anystep import TransitionPipeline
from anystep.cli import main
from anystep.conditioning import load_text_encoder
from anystep.errors import InputError
from anystep.pipelines.convert import Request, convert_reference, restore_reference
from anystep.sampling import noise


@pytest.mark.parametrize(
    ("name", "size"), [("t2i", "8x8"), ("t2i", "6x10"), ("c2i", "8x8"), ("c2i", "4x12"), ("c2i_shared_r", "8x8")]
)
def test_the_network_of_a_folder_gives_the_numbers_of_the_reference(
    converted: dict[str, Path], numbers: Path, name: str, size: str
) -> None:
    network, stored = opened(converted[name]).transformer, load_file(numbers / f"{name}.io.safetensors")
    inputs = [stored[f"{size}.{key}"] for key in ("x", "t", "r", "y")]
    out, features = network(*inputs, return_features=True)
    torch.testing.assert_close(out, stored[f"{size}.out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, stored[f"{size}.zs"], rtol=1e-5, atol=1e-5)


def test_a_folder_says_what_its_weights_were_trained_with(converted: dict[str, Path]) -> None:
    index, classes = (json.loads((converted[name] / "model_index.json").read_text()) for name in ("t2i", "c2i"))
    network = json.loads((converted["t2i"] / "transformer" / "config.json").read_text())
    scheduler = json.loads((converted["t2i"] / "scheduler" / "scheduler_config.json").read_text())
    assert index["open_guidance_interval"] is classes["open_guidance_interval"] is True
    assert (index["escape_captions"], classes["escape_captions"]) == (True, False)
    assert (network["rope_grid"], network["mask_text"], network["sample_size"]) == ("reference", False, 8)
    assert (scheduler["transport"], scheduler["base_size"], scheduler["shift"]) == ("ot_fm", None, 1.0)
    assert not (converted["t2i"] / "vae").exists()


@pytest.mark.parametrize("name", REFERENCE_NETWORKS)
def test_what_is_converted_and_converted_back_is_identical(
    converted: dict[str, Path], numbers: Path, tmp_path: Path, name: str
) -> None:
    released, back = load_file(numbers / f"{name}.weights.safetensors"), tmp_path / "back.safetensors"
    assert main(["convert", "to-reference", "--model", str(converted[name]), "--out", str(back)]) == 0
    restored = load_file(back)
    assert restored.keys() == released.keys()
    assert all(torch.equal(restored[key], released[key]) for key in released)


@pytest.mark.parametrize("name", ["t2i", "c2i"])
@pytest.mark.parametrize(("label", "steps", "scale", "interval"), TRAJECTORIES)
def test_whole_trajectories_of_the_pipeline_are_those_of_the_reference(
    converted: dict[str, Path], numbers: Path, name: str, label: str, steps: int, scale: float, interval: Any
) -> None:
    pipeline, stored = opened(converted[name]), load_file(numbers / "objective.safetensors")
    y, null, z, path = (stored[f"{name}.sample.{key}"] for key in ("y", "y_null", "z", label))
    pipeline.conditioner = GivenStates(y, null)
    seen: list[Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"].clone())
        return {}

    side = 8 * pipeline.latent_codec.factor
    output = pipeline(
        ["a red apple"] * 3 if name == "t2i" else [1, 2, 3], side, side, steps, guidance_scale=scale, latents=z,
        guidance_interval=interval, output_type="latent", callback_on_step_end=keep,
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(seen), path[1:].to(seen[0]), rtol=1e-5, atol=1e-5)
    guided = sum(0 < 1 - step / steps < (interval or (0, 1))[1] for step in range(steps)) if scale > 1 else 0
    assert output.nfe == steps + guided


def draw(pipeline: TransitionPipeline, prompts: list[str], **options: Any) -> Tensor:
    latents: Tensor = pipeline(prompts, 32, 32, 3, output_type="latent", guidance_scale=2.0, **options).images
    return latents


def test_each_image_is_drawn_as_if_its_caption_were_alone(converted: dict[str, Path]) -> None:
    pipeline = opened(converted["t2i"])
    prompts = ["whale", "a red apple on a blue background", "a red whale"]
    together = draw(pipeline, prompts, seeds=[3, 4, 5])
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(
            together[row : row + 1], draw(pipeline, [prompt], seeds=[3 + row]), rtol=0, atol=1e-5
        )


def test_the_null_caption_is_padded_to_the_length_of_each_caption_and_attended_to(converted: dict[str, Path]) -> None:
    pipeline, prompt = opened(converted["t2i"]), "a red apple on a blue background"
    network, encoder = pipeline.transformer, load_text_encoder(pipeline.config.text_encoder_name)
    states, _ = encoder([prompt])
    z = noise((4, 8, 8), [3])
    one, half, zero = (torch.tensor([time]) for time in (1.0, 0.5, 0.0))

    def by_hand(null: Tensor) -> Tensor:
        with torch.no_grad():
            x = z - 0.5 * network(z, one, half, states)  # the first step begins at the end of the interval: unguided
            F, F_null = (network(x, half, zero, each) for each in (states, null))
        return x - 0.5 * (F_null + 2.0 * (F - F_null))

    drawn = pipeline(prompt, 32, 32, 2, guidance_scale=2.0, latents=z, output_type="latent").images
    torch.testing.assert_close(drawn, by_hand(encoder.padded_null(states.shape[1])), rtol=0, atol=1e-5)
    assert (drawn - by_hand(encoder.null(1)[0])).abs().max() > 1e-3


def test_captions_are_escaped_as_the_reference_does(converted: dict[str, Path]) -> None:
    encoder = opened(converted["t2i"]).conditioner
    assert encoder.read("an é\n\\") == "an \\xe9\\n\\\\"  # type: ignore[union-attr]
    assert load_text_encoder().read("an é\n") == "an é\n"


def request(numbers: Path, folder: Path, codec: Path, gemma: Path, **changes: Any) -> Request:
    given = {"options": reference_options(numbers, folder, "t2i"), "vae": str(codec), "text_encoder": str(gemma)}
    return Request(numbers / "t2i.weights.safetensors", folder / "out", **{**given, **changes})


def test_with_its_parts_copied_a_folder_needs_nothing_else(
    numbers: Path, tiny_codec: Path, gemma: Path, tmp_path: Path, converted: dict[str, Path]
) -> None:
    convert_reference(request(numbers, tmp_path, tiny_codec, gemma, copy=True))
    whole, named = opened(tmp_path / "out"), opened(converted["t2i"])
    assert (whole.config.vae_name, whole.config.text_encoder_name) == (None, None)
    plain = DiffusionPipeline.from_pretrained(str(converted["t2i"]), trust_remote_code=True)
    images = [each("a red whale", 32, 32, 2, seeds=[1], output_type="pt").images for each in (whole, named, plain)]
    assert torch.equal(*images[:2])
    assert torch.equal(*images[1:])


def test_options_are_detected_from_the_tensors_alone(
    numbers: Path, tiny_codec: Path, gemma: Path, tmp_path: Path, converted: dict[str, Path]
) -> None:
    made = convert_reference(request(numbers, tmp_path, tiny_codec, gemma, options=None))
    assumed = "interval_condition t-r, sample_size 32, encoder_depth 3, guidance_scale 1.5"
    assert made.remarks[0].startswith(f"assumed, as nothing told: {assumed} (--preset tells, ")
    found, said = (
        json.loads((folder / "transformer" / "config.json").read_text())
        for folder in (tmp_path / "out", converted["t2i"])
    )
    untold = {"sample_size", "encoder_depth"}  # by shapes
    assert {name for name in said if found[name] != said[name]} <= untold


def test_weights_keep_the_dtype_they_are_stored_in(
    numbers: Path, tiny_codec: Path, gemma: Path, tmp_path: Path
) -> None:
    halves = {name: each.bfloat16() for name, each in load_file(numbers / "t2i.weights.safetensors").items()}
    torch.save({"step": 7, "ema": {f"module.{name}": each for name, each in halves.items()}}, tmp_path / "wrapped.bin")
    made = convert_reference(replace(request(numbers, tmp_path, tiny_codec, gemma), weights=tmp_path / "wrapped.bin"))
    assert made.remarks[:2] == ("read 'ema' of wrapped.bin", "took 'module.' off every name")
    stored = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {each.dtype for each in stored.values()} == {torch.bfloat16}
    assert restore_reference(str(tmp_path / "out"), tmp_path / "back.safetensors") == len(halves)
    back = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(back[name], halves[name]) for name in halves)


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(
    numbers: Path, tiny_codec: Path, gemma: Path, tiny_text_models: dict[str, Path], tmp_path: Path
) -> None:
    def refuse(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match) as caught:
            convert_reference(replace(request(numbers, tmp_path, tiny_codec, gemma), **changes))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refuse("--preset and --options: give one of them", preset="t2i-xl")
    refuse(r"not those of preset t2i-xl: they have hidden_size 48, not 1152", preset="t2i-xl", options=None)
    refuse(r"not those of preset c2i-xl-2: .* more", preset="c2i-xl-2", options=None)
    refuse("not those of .*c2i.json", options=reference_options(numbers, tmp_path, "c2i"))
    refuse("--vae is missing", vae=None)
    refuse("--text-encoder is missing", text_encoder=None)
    bert = str(tiny_text_models["bert"])
    refuse("text encoder .* has 16 channels, but the network reads 24", text_encoder=bert)
    refuse("--section|section 'ema'", section="ema")
    weights = load_file(numbers / "t2i.weights.safetensors")
    name, odd = "blocks.1.mlp.fc2.weight", tmp_path / "odd.safetensors"
    for tensor, message in (
        (weights[name].to(torch.int8), "numbers of int8"),
        (weights[name] * torch.nan, "not finite"),
    ):
        save_file({**weights, name: tensor}, odd)
        refuse(f"odd.safetensors: its tensor {name!r} holds numbers .*{message.split()[-1]}", weights=odd)
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "odd.safetensors")
    refuse("no Transition Models weights", weights=tmp_path / "odd.safetensors", options=None)
    torch.save({"ema": weights, "model": weights}, tmp_path / "two.bin")
    refuse(r"two.bin' holds ema \(\d+ tensors\), model \(\d+ tensors\): pick one", weights=tmp_path / "two.bin")


@pytest.mark.parametrize("guided", [True, False])
def test_a_model_is_written_over_what_this_command_made_only(
    numbers: Path, tiny_codec: Path, gemma: Path, converted: dict[str, Path], tmp_path: Path, guided: bool
) -> None:
    shutil.copytree(converted["t2i"], tmp_path / "out")
    mark, index = tmp_path / "out" / ".anystep.json", tmp_path / "out" / "model_index.json"
    mark.write_text(mark.read_text().replace("converted model", "published folder"))  # before marks said the command
    index.write_text(json.dumps({**json.loads(index.read_text()), "open_guidance_interval": guided}))
    before, again = index.read_bytes(), request(numbers, tmp_path, tiny_codec, gemma)
    if guided:
        convert_reference(again)
        assert json.loads(mark.read_text())["kind"] == "converted model"
    else:
        with pytest.raises(InputError, match="holds a published folder, not a converted model: choose another --out"):
            convert_reference(again)
        assert index.read_bytes() == before


def test_only_networks_that_the_reference_has_are_written_with_its_names(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "kept.safetensors"
    save_file({"mine": torch.zeros(2)}, other)
    with pytest.raises(InputError, match="what is there was not made by this command"):
        restore_reference(str(tiny_model), other)
    with pytest.raises(InputError, match="rope_grid of its network is 'row_major', which the reference does not have"):
        restore_reference(str(tiny_model), tmp_path / "back.safetensors")
    with pytest.raises(InputError, match="unknown model"):
        restore_reference(str(tmp_path / "nowhere"), tmp_path / "back.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("open_guidance_interval", "yes", "true or false"),
        ("escape_captions", 1, "true or false"),
        ("vae_name", 3, "text"),
    ],
)
def test_settings_of_released_weights_are_checked(
    converted: dict[str, Path], tmp_path: Path, name: str, value: Any, expected: str
) -> None:
    shutil.copytree(converted["c2i"], tmp_path / "odd")
    index = json.loads((tmp_path / "odd" / "model_index.json").read_text())
    (tmp_path / "odd" / "model_index.json").write_text(json.dumps({**index, name: value}))
    with pytest.raises(InputError, match=f"{name} {value!r}: expected {expected}"):
        opened(tmp_path / "odd")
