"""Folders of models that somebody else made: what is refused, before a library opens it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

import anystep
from anystep.codecs import load_codec
from anystep.conditioning import load_text_encoder
from anystep.errors import InputError
from anystep.pipelines.plan import ModelSpec
from anystep.pretrained import pretrained

WEIGHTS = "diffusion_pytorch_model.safetensors"
Damage = Callable[[Path], None]


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def changed(path: str, **entries: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return damage


def replaced(path: str, make: Damage) -> Damage:
    def damage(folder: Path) -> None:
        (folder / path).unlink()
        make(folder / path)

    return damage


def pickled(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).unlink()
    torch.save({"weight": Code(folder / "RAN")}, folder / "vae" / "diffusion_pytorch_model.bin")


def with_code(folder: Path) -> None:
    (folder / "vae" / "mine.py").write_text(f"import os; os.mkdir({str(folder / 'RAN')!r})\nclass X: pass\n")
    changed("model_index.json", vae=["mine", "X"])(folder)


def with_pipeline(folder: Path) -> None:
    (folder / "pipeline.py").write_text(f"import os; os.mkdir({str(folder / 'RAN')!r})\nclass X: pass\n")
    changed("model_index.json", _class_name=["pipeline", "X"])(folder)


def write(file: Path, text: str) -> None:
    file.write_text(text, "latin-1")


def hidden_weights(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).unlink()
    os.mkfifo(folder / "vae" / ".w.safetensors")
    write(folder / "vae" / f"{WEIGHTS}.index.json", '{"weight_map": {"x": ".w.safetensors"}}')


def header(length: int) -> Damage:
    return lambda file: write(file, length.to_bytes(8, "little").decode("latin-1") + "{}" * 50)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "depth": (changed("transformer/config.json", depth=10**9), "depth 1000000000: expected"),
    "layers": (changed("vae/config.json", decoder_layers_per_block=[10**9] * 3), "layers_per_block 1000000000: exp"),
    "width": (changed("transformer/config.json", hidden_size=10**8), "hidden_size 100000000: expected"),
    "channels": (changed("vae/config.json", latent_channels=10**9), "latent_channels 1000000000: expected"),
    "many": (changed("vae/config.json", encoder_block_types=["ResBlock"] * 5000), "has 5,000 entries"),
    "not a number": (changed("transformer/config.json", mlp_ratio=float("nan")), "mlp_ratio nan: expected"),
    "statistics": (changed("vae/config.json", latents_mean=[1.0]), "latents_mean and latents_std"),
    "steps": (changed("scheduler/scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps 10000000"),
    "times": (
        changed("scheduler/scheduler_config.json", transport="ve", transport_options={"t_min": 0.0}),
        "t_min 0: expected",
    ),
    "concepts": (changed("model_index.json", concepts=5), "concepts 5: expected a list of texts"),
    "guidance": (changed("model_index.json", guidance_scale="x"), "guidance_scale 'x': expected a number"),
    "sampling": (changed("model_index.json", sampling=["x"]), "sampling .* expected one of"),
    "another pipeline": (changed("model_index.json", _class_name="FluxPipeline"), "'FluxPipeline', not a Transition"),
    "any class": (changed("model_index.json", text_encoder=["transformers", "AutoModel"]), "AutoModel"),
    "a missing part": (lambda folder: shutil.rmtree(folder / "vae"), "has no folder 'vae'"),
    "a pickle": (pickled, "a pickle, which can run code"),
    "a class of its own": (with_code, "cannot load model"),
    "a pipeline of its own": (with_pipeline, "not a TransitionPipeline"),
    "a FIFO": (replaced(f"transformer/{WEIGHTS}", os.mkfifo), "it is a FIFO"),
    "a FIFO for a config": (replaced("transformer/config.json", os.mkfifo), "it is a FIFO"),
    "a device": (replaced(f"vae/{WEIGHTS}", lambda file: file.symlink_to("/dev/zero")), "it is a device"),
    "a loop": (replaced(f"vae/{WEIGHTS}", lambda file: file.symlink_to(file)), "cannot read"),
    "a huge header": (replaced(f"vae/{WEIGHTS}", header(2**40)), "is damaged"),
    "an empty file": (replaced(f"vae/{WEIGHTS}", lambda file: file.touch()), "is damaged"),
    "no description": (replaced(f"vae/{WEIGHTS}", header(2)), "cannot load model"),
    "deep": (replaced("vae/config.json", lambda file: write(file, "[" * 99_999)), "nested too deeply"),
    "elsewhere": (
        lambda folder: (
            (folder / "vae" / "a.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}') and None
        ),
        "names the file '../x', which is not beside it",
    ),
    "a hidden FIFO": (hidden_weights, "names the file '.w.safetensors', which is not beside it, or hidden"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_refused_is_one_line_and_runs_nothing(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        anystep.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder / "RAN").exists()


def test_links_to_files_elsewhere_are_followed_as_the_hubs_cache_has_them(tiny_model: Path, tmp_path: Path) -> None:
    folder, blobs = shutil.copytree(tiny_model, tmp_path / "snapshot"), tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(each for each in folder.rglob("*") if each.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert len(anystep.load(folder)("a whale", steps=1)) == 1


def test_a_plan_is_made_of_sizes_that_are_meant(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    changed("transformer/config.json", depth=10**9, more=3)(folder)
    with pytest.raises(InputError, match="depth 1000000000: expected"):
        ModelSpec.of(str(folder))


def test_codecs_and_text_encoders_are_looked_through_too(
    tiny_codec: Path, tiny_text_models: dict[str, Path], tmp_path: Path
) -> None:
    codec, bert = (
        shutil.copytree(tiny_codec, tmp_path / "codec"),
        shutil.copytree(tiny_text_models["bert"], tmp_path / "b"),
    )
    changed("config.json", latent_channels=10**9)(codec)
    with pytest.raises(InputError, match="latent_channels 1000000000: expected"):
        load_codec(codec)
    changed("config.json", num_hidden_layers=10**9)(bert)
    with pytest.raises(InputError, match="num_hidden_layers 1000000000: expected"):
        load_text_encoder(bert)
    (bert / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no judge at .*num_hidden_layers 1000000000: expected"):
        pretrained(AutoModel, str(bert), "judge")


def test_a_text_encoder_brings_no_code(tiny_text_models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_text_models["bert"], tmp_path / "bert")
    (folder / "mine.py").write_text(f"import os; os.mkdir({str(tmp_path / 'RAN')!r})\n")
    entries = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
    changed("config.json", **entries)(folder)
    with pytest.raises(InputError, match="no text encoder at"):
        load_text_encoder(folder)
    shutil.copytree(tiny_text_models["bert"], folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Code(tmp_path / "RAN")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle, which can run code"):
        load_text_encoder(folder)
    assert not (tmp_path / "RAN").exists()
