"""Features of frozen encoders: the tokens of the network's grid, made once, and a loss that can be switched off."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anystep.cli import main
from anystep.data.image_encoder import ImageEncoder, load_image_encoder
from anystep.errors import InputError
from anystep.training.config import Recipe
from anystep.training.train import train

RADIO = """
import torch
from torch import nn
dependencies = ["torch"]
class Model(nn.Module):
    patch_size = 2
    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(3, 5, 2, 2)
    def forward(self, x):
        found = self.cut(x).flatten(2).transpose(1, 2)
        return found.mean(1), found
def radio_model(version=None, **options):
    torch.manual_seed(0)
    return Model()
"""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a random DINOv2, one with registers, a SigLIP and a RADIO checkout."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    siglip = {**sizes, "intermediate_size": 32}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    made = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**sizes)),
        "registers": transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes)),
        "siglip": transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=siglip)),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in [*made, "radio"]}
    for name, model in made.items():
        model.save_pretrained(folders[name])
    (folders["radio"] / "hubconf.py").write_text(RADIO)
    return folders


@pytest.mark.parametrize(("name", "width"), [("dinov2", 16), ("registers", 16), ("siglip", 16), ("radio", 5)])
def test_an_encoder_gives_a_vector_for_each_token_of_the_grid(
    encoders: dict[str, Path], name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYSTEP_ALLOW_CODE", "1")
    encoder = load_image_encoder(f"radio:{encoders[name]}" if name == "radio" else str(encoders[name]))
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    found = encoder(images, 3, 4)
    assert found.shape == (2, 12, width)
    turned = encoder(images.flip(0), 3, 4)
    torch.testing.assert_close(turned, found.flip(0))


def test_a_fingerprint_is_that_of_the_weights(encoders: dict[str, Path]) -> None:
    first, again, other = (load_image_encoder(str(encoders[name])) for name in ("dinov2", "dinov2", "registers"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    changed = load_image_encoder(str(encoders["dinov2"]))
    with torch.no_grad():
        changed.model.layernorm.bias[-1] += 1e-2  # the last of all
    assert changed.fingerprint != first.fingerprint


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
    encoders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANYSTEP_ALLOW_CODE", raising=False)
    folder = shutil.copytree(encoders["radio"], tmp_path / "radio")
    ran = tmp_path / "ran"
    with (folder / "hubconf.py").open("a") as file:
        file.write(f"open({str(ran)!r}, 'w').close()\n")
    for spec in (f"radio:{folder}", "radio:c-radio_v3-b"):
        with pytest.raises(InputError, match=r"runs Python code from .*set ANYSTEP_ALLOW_CODE=1"):
            load_image_encoder(spec)
    assert not ran.exists()


def test_weights_that_a_file_does_not_hold_are_not_drawn_at_random(encoders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(encoders["dinov2"], tmp_path / "dinov2")
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


def recipe(source: str, codec: Path, encoder: Path, **options: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"source": source, "size": 16},
            "model": {"preset": "t2i-test", "codec": str(codec)},
            "optimizer": {"learning_rate": 1e-2, "warmup": 2},
            "run": {"steps": 6, "batch_size": 4, "checkpoint_every": 3, "sample_every": 0},
            "alignment": {"encoder": str(encoder), "depth": 1, "projector_dim": 8, **options},
        }
    )


def test_alignment_falls_and_is_switched_off(
    captioned_folder: Path, tiny_codec: Path, encoders: dict[str, Path], tmp_path: Path
) -> None:
    train(recipe(str(captioned_folder), tiny_codec, encoders["dinov2"], until=0.7), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    distances = [record["alignment"] for record in records]
    assert distances[3] < distances[0]
    assert distances[5] == 0
    assert min(distances[:4]) > 0


def test_prepared_shards_train_as_the_source_does_and_are_checked(
    captioned_folder: Path, tiny_codec: Path, encoders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    shards = tmp_path / "shards"
    words = ["--codec", str(tiny_codec), "--features", str(encoders["dinov2"]), "--text-encoder", "builtin"]
    command = ["data", "prepare", str(captioned_folder), "--out", str(shards), "--size", "16", "--shard-size", "5"]
    assert main([*command, *words, "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert "12 examples in 3 shards, 12 with captions, 0 classes\nsizes: 16x16 12\n" in said
    direct, prepared = (
        recipe(source, tiny_codec, encoders["dinov2"]) for source in (str(captioned_folder), f"shards:{shards}")
    )
    train(direct, tmp_path / "direct")
    train(prepared, tmp_path / "prepared")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("direct", "prepared")
    ]
    assert losses[0] == pytest.approx(
        losses[1], rel=2e-3
    )  # states of captions are padded otherwise, and kept in halves

    with pytest.raises(InputError, match=r"were made with features '.*', this recipe has"):
        train(recipe(f"shards:{shards}", tiny_codec, encoders["registers"]), tmp_path / "other")
    assert main([*command, *words]) == 2
    assert "differ in dtype ('float32', not 'float16')" in capsys.readouterr().err
    assert main([*command[:5], "--size", "18", *words]) == 2
    assert "--size 18: must be a multiple of 4" in capsys.readouterr().err
    assert main(["data", "prepare", f"shards:{shards}", "--out", str(tmp_path / "x"), "--size", "16"]) == 2
    assert "hold no images, but" in capsys.readouterr().err
