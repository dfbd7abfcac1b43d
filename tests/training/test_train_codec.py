"""Training a codec: resume, refinement, and what goes wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anystep.codecs import AutoencoderCodec, load_codec
from anystep.errors import InputError
from anystep.training import train_codec as codec_module
from anystep.training.codec_config import CodecRecipe
from anystep.training.train_codec import train_codec


def test_a_codec_trains_resumes_and_is_refined_without_moving_its_latents(
    captioned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "data": {"source": str(captioned_folder), "size": 16},
        "codec": {"latent_channels": 4, "widths": [8, 8, 16], "encoder_depths": [0, 1, 1], "decoder_depths": [0, 1, 1]},
        "run": {"steps": 4, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "sample_every": 0},
    }
    first = train_codec(CodecRecipe.model_validate(config), tmp_path / "codec")
    assert first["step"] == 4
    assert first["psnr"] > 0
    assert "the run of 4 steps ends in the warm-up of 100" in capsys.readouterr().err
    config["run"] |= {"steps": 6}  # type: ignore[operator]
    assert train_codec(CodecRecipe.model_validate(config), tmp_path / "codec")["step"] == 6
    for field, run in (("refine", "refined"), ("weights", "continued")):
        train_codec(CodecRecipe.model_validate({**config, field: str(tmp_path / "codec" / "codec")}), tmp_path / run)
    before, after, further = (
        load_file(tmp_path / run / "codec" / "diffusion_pytorch_model.safetensors")
        for run in ("codec", "refined", "continued")
    )
    for name, tensor in before.items():
        same = torch.equal(tensor, after[name])
        assert same if name.startswith("encoder") else True, name
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items() if name.startswith("decoder"))
    statistics = [
        json.loads((tmp_path / run / "codec" / "config.json").read_text())["latents_std"]
        for run in ("codec", "refined")
    ]
    assert statistics[0] == statistics[1]
    distance = {name: (further[name] - tensor).abs().max() for name, tensor in before.items()}
    assert any(value > 0 for name, value in distance.items() if name.startswith("encoder"))
    assert max(distance.values()) < 0.1  # six steps from the given weights, not from others


def test_one_autoencoder_is_gone_on_from(captioned_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights and refine both name"):
        CodecRecipe.model_validate({"weights": "builtin", "refine": "builtin"})
    recipe = codec_recipe(captioned_folder).model_copy(update={"weights": "identity"})
    with pytest.raises(InputError, match="weights 'identity' is not an autoencoder"):
        train_codec(recipe, tmp_path / "run")


def codec_recipe(source: Path, **run: Any) -> CodecRecipe:
    return CodecRecipe.model_validate(
        {
            "data": {"source": str(source), "size": 16},
            "codec": {
                "latent_channels": 4,
                "widths": [8, 8, 16],
                "encoder_depths": [0, 1, 1],
                "decoder_depths": [0, 1, 1],
            },
            "run": {"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, "sample_every": 0, **run},
        }
    )


def test_a_codec_that_diverged_is_not_published(
    captioned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_codec(codec_recipe(captioned_folder, steps=2), tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "codec").iterdir()}
    monkeypatch.setattr(codec_module.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(InputError, match="step 6: loss and gradient are no longer finite"):
        train_codec(codec_recipe(captioned_folder), tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "codec").iterdir()} == before


def test_a_codec_is_not_trained_by_several_processes(
    captioned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        train_codec(codec_recipe(captioned_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_others_put_into_a_published_folder_stays(captioned_folder: Path, tmp_path: Path) -> None:
    train_codec(codec_recipe(captioned_folder, steps=1), tmp_path)
    (tmp_path / "codec" / "README.md").write_text("mine")
    train_codec(codec_recipe(captioned_folder, steps=2), tmp_path)
    assert (tmp_path / "codec" / "README.md").read_text() == "mine"


def test_a_decoder_that_is_gone_on_from_gets_deeper_and_decodes_as_before(
    captioned_folder: Path, tmp_path: Path
) -> None:
    train_codec(codec_recipe(captioned_folder, steps=2), tmp_path)
    shallow = load_codec(tmp_path / "codec")
    assert isinstance(shallow, AutoencoderCodec)
    deep = codec_module.deepen_decoder(shallow.autoencoder, [0, 2, 3])
    assert deep.config.decoder_layers_per_block == (0, 2, 3)
    latents = torch.randn(2, 4, 4, 4)
    assert torch.equal(AutoencoderCodec(deep).decode(latents), shallow.decode(latents))
    for others in ([0, 1, 1], [0, 1], [1, 2, 3], [0, 0, 3]):  # as many, other stages, another last layer, fewer
        assert codec_module.deepen_decoder(shallow.autoencoder, others) is shallow.autoencoder
    deeper = codec_recipe(captioned_folder, steps=2).model_dump() | {"refine": str(tmp_path / "codec")}
    deeper["codec"]["decoder_depths"] = [0, 2, 2]
    train_codec(CodecRecipe.model_validate(deeper), tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper" / "codec" / "config.json").read_text())
    assert config["decoder_layers_per_block"] == [0, 2, 2]
    assert config["latents_std"] == json.loads((tmp_path / "codec" / "config.json").read_text())["latents_std"]
