"""What is known of the releases, and the configurations of the reference implementation."""

import json
from pathlib import Path
from typing import Any

import pytest

from anystep.errors import InputError
from anystep.models import build_transformer
from anystep.models.presets import PRESETS
from anystep.models.released import DC_AE, GEMMA, RELEASES, network_options, preset_options, read_config, release_of

YAML = """
model:
  transport:
    target: tim.schedulers.transports.OT_FM
    params: {P_mean: 0.0, P_std: 1.6, sigma_d: 1.0}
  network:
    target: tim.models.t2i.tim_model.TiM
    params:
      input_size: 16
      patch_size: 1
      depth: 28
      hidden_size: 1152
      cap_feat_dim: 1152
      qk_norm: True
      new_condition: t-r
      use_new_embed: True
  vae_dir: mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers
  text_encoder_dir: google/gemma-3-1b-it
training:
  learning_rate: 1.0e-4
"""


@pytest.mark.parametrize(
    ("file", "preset"),
    [("t2i_model.bin", "t2i-xl"), ("c2i_model_256.safetensors", "c2i-xl-2"), ("c2i_model_512.safetensors", "c2i-xl-1")],
)
def test_a_release_is_known_by_the_name_of_its_file(file: str, preset: str) -> None:
    found = release_of(None, Path("checkpoints") / file)
    assert found is not None
    assert found.preset == preset
    assert release_of(preset, Path("mine.bin")) == found
    assert release_of(None, Path("mine.bin")) is None


def test_the_images_that_releases_began_with_are_of_256_and_512_pixels() -> None:
    factors = {DC_AE: 32}
    sides = [factors.get(each.vae, 8) * each.sample_size for each in RELEASES]
    assert sides == [512, 256, 512, 256]


def test_a_preset_of_which_nothing_was_released_is_one_line() -> None:
    with pytest.raises(InputError, match=r"preset 't2i-xxl': did you mean t2i-xl\? expected one of t2i-xl, c2i-xl-2"):
        release_of("t2i-xxl", Path("x.bin"))


def test_the_configuration_of_the_reference_says_the_network_and_the_parts_around_it(tmp_path: Path) -> None:
    (tmp_path / "t2i.yaml").write_text(YAML)
    config = read_config(tmp_path / "t2i.yaml")
    assert (config.vae, config.text_encoder) == (DC_AE, GEMMA)
    assert config.network["sample_size"] == 16
    assert config.network["shared_time_embedder"] is False
    assert {name: config.network[name] for name in ("hidden_size", "depth", "text_width")} == {
        name: PRESETS["t2i-xl"][name] for name in ("hidden_size", "depth", "text_width")
    }


def test_network_options_are_read_wherever_they_lie(numbers: Path, tmp_path: Path) -> None:
    options = json.loads((numbers / "meta.json").read_text())["t2i"]
    for number, content in enumerate((options["config"], options, {"network": {"params": options["config"]}})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content))
        assert read_config(path).network == network_options(options["config"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {network: {}}", "has no network options: expected depth, hidden_size"),
        ("- 1", "has no network options"),
        ("depth: 3\ndept: 4", r"unknown network options \['dept'\]"),
        (YAML.replace("OT_FM", "EDM"), "transport 'tim.schedulers.transports.EDM': expected OT_FM"),
        (YAML.replace("google/gemma-3-1b-it", "[1]"), r"text_encoder_dir \[1\]: expected a hub id or a folder"),
    ],
)
def test_a_configuration_of_something_else_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "odd.yaml")


def test_options_of_presets_are_those_of_networks_that_can_be_made() -> None:
    small: dict[str, Any] = {"hidden_size": 32, "num_heads": 2, "depth": 8}
    for release in RELEASES:
        network = build_transformer(release.preset, **{**preset_options(release), **small})
        assert network.config.sample_size == release.sample_size
        assert network.config.interval_condition == "t-r"
