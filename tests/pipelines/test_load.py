"""Models by name: what is found, what is refused, and how damage is told."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import anystep
from anystep.errors import InputError
from anystep.pipelines.load import Model, find, load

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(tiny_model)


def test_one_prompt_or_several_are_a_list_of_images(model: Model) -> None:
    assert [image.size for image in model("a whale", steps=1)] == [(16, 16)]
    assert [image.size for image in model(["a whale", "a tractor"], steps=1, size=(24, 16))] == [(24, 16)] * 2


def test_one_seed_serves_every_prompt_or_each_has_its_own(model: Model) -> None:
    one, same = model(["a whale", "a whale"], seed=3)
    assert one.tobytes() == same.tobytes()
    drawn = model.generate(["a whale", "a whale"], seed=[3, 4])
    assert drawn.images[0].tobytes() == one.tobytes() != drawn.images[1].tobytes()


def test_several_images_of_a_prompt_have_the_seeds_from_the_first_on(model: Model) -> None:
    drawn = model.generate(["a whale", "a tractor"], 1, seed=3, num_images_per_prompt=2)
    assert drawn.seeds == (3, 4, 3, 4)
    assert drawn.images[1].tobytes() == model("a whale", 1, seed=4)[0].tobytes() != drawn.images[0].tobytes()
    assert model.generate("a whale", 1, seed=[5, 9], num_images_per_prompt=2).seeds == (5, 9)


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    drawn = model.generate("a whale", np.int64(1), seed=np.int64(3), size=np.array([24, 16]))
    assert (drawn.steps, drawn.seeds, drawn.images[0].size) == (1, (3,), (24, 16))
    for seed in (torch.tensor(3), np.array(3)):  # without an axis
        assert model.generate("a whale", 1, seed=seed).seeds == (3,)
    assert model.generate(["a whale"] * 2, 1, seed=np.arange(2)).seeds == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "seed None: expected a whole number from 0"),
        ({"seed": "3"}, "seed '3': expected a whole number from 0"),
        ({"seed": 1.5}, "seed 1.5: expected a whole number"),
        ({"seed": -1}, "seed -1: expected a whole number from 0"),
        ({"seed": [0, 1]}, "seed [0, 1]: expected 1 of them, got 2"),
        ({"seed": [None]}, "seed None: expected a whole number"),
        ({"steps": 2.5}, "steps 2.5: expected a whole number from 1"),
        ({"steps": 0}, "steps 0: expected a whole number from 1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0: expected a whole number from 1"),
        ({"size": 64}, "size 64: expected 2 of them"),
        ({"size": (64, 64, 3)}, "size (64, 64, 3): expected 2 of them, got 3"),
        ({"size": (64.5, 64)}, "size 64.5: expected a whole number"),
        ({"prompt": 1.5}, "prompt 1.5: expected one, or a list of them"),
        ({"prompt": None}, "prompt None: expected one, or a list of them"),
        ({"prompt": []}, "no prompt given"),
        ({"generator": torch.Generator()}, "generator: a model takes `seed` in its place"),
        ({"num_inference_steps": 3}, "num_inference_steps: a model takes `steps` in its place"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        model.generate(**{"prompt": "a whale", "steps": 1, **options})
    assert message in str(caught.value)


def test_generating_reports_what_it_cost(model: Model) -> None:
    drawn = model.generate("a whale", steps=3)
    assert (drawn.steps, drawn.nfe) == (3, 6)
    assert drawn.seconds > 0
    assert model.generate("a whale", steps=3, guidance=1.0).nfe == 3


def test_half_precision_blocks_keep_times_in_single(tiny_model: Path) -> None:
    model = load(tiny_model, dtype=torch.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in model.pipeline.transformer.named_parameters()}
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}
    assert len(model("a whale", steps=2)) == 1


def test_a_run_folder_stands_for_its_pipeline(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "pipeline")
    assert find(tmp_path) == str(tmp_path / "pipeline")
    assert find("owner/name") == "owner/name"
    assert load is anystep.load


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/nowhere/at-all", "./nowhere/x", ""])
def test_an_unknown_model_is_told_what_would_be_one(name: str) -> None:
    with pytest.raises(InputError, match=r"^unknown model .*builtin.*model_index\.json.*owner/name$"):
        load(name)


def test_a_misspelt_model_is_told_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "emoji" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, message in (
        ("runs/emojii", "unknown model 'runs/emojii': did you mean runs/emoji?"),
        ("buitlin", "did you mean builtin?"),
        ("runs/emoji", "a training run that has not ended yet"),
        ("run", "did you mean runs?"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            find(name)


def test_the_home_folder_is_known(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert find(f"~/{tiny_model.name}") == str(tiny_model)


def test_a_hub_id_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot load model 'nobody/nothing'") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_an_unknown_device_is_one_line(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="device 'abacus' is not available"):
        load(tiny_model, "abacus")


def damage(folder: Path, kind: str) -> None:
    weights, config = folder / "transformer" / WEIGHTS, folder / "transformer" / "config.json"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "noise":
        weights.write_bytes(bytes(range(256)) * 100)
    elif kind == "missing":
        weights.unlink()
    elif kind == "a tensor missing":
        save_file(dict(sorted(load_file(weights).items())[1:]), weights)
    elif kind == "codec truncated":
        (folder / "vae" / WEIGHTS).write_bytes(b"short")
    elif kind == "no index":
        (folder / "model_index.json").write_text("{")
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 256}))


@pytest.mark.parametrize(
    "kind", ["truncated", "noise", "missing", "a tensor missing", "codec truncated", "no index", "another shape"]
)
def test_damaged_models_are_one_line_that_names_them(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage(folder, kind)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_mistyped_folder_that_reads_like_a_hub_id_is_told_as_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no such folder, and no model of that name came from the hub"):
        load("anystep-runs/emojii")
