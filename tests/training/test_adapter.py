"""Training an adapter: it alone moves, a run continues exactly, and what is written draws as what was trained."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import check_continues_exactly, losses, save_guided, weights
from helpers import draw_latents as draw
from safetensors.torch import load_file

import anystep
from anystep.errors import InputError
from anystep.models.lora import LORA_FILE, PREFIX, add_lora, lora_of, read_lora, write_lora
from anystep.training import train as module
from anystep.training.adapter import BaseModel, card, count_adapter, on_base
from anystep.training.config import Recipe
from anystep.training.dry_run import DryRun
from anystep.training.plan import budget
from anystep.training.train import train


def recipe(source: Path | str, weights_of: Path | str, rank: int | None = 2, **said: Any) -> Recipe:
    run = said.pop("run", {})
    content: dict[str, Any] = {
        "data": {"source": str(source)},
        "model": {"weights": str(weights_of), **said.pop("model", {})},
        "lora": None if rank is None else {"rank": rank, "alpha": 4},
        "objective": {"kind": "any_step", "diffusion_share": 0.5},
        "optimizer": {"learning_rate": 1e-2, "warmup": 2, **said.pop("optimizer", {})},
        "run": {"steps": 4, "batch_size": 5, "checkpoint_every": 2, "sample_every": 0, "log_every": 3, **run},
        "sample_steps": [1, 2],
    }
    return Recipe.model_validate({**content, **said})


def test_an_interrupted_run_continues_exactly(
    captioned_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(captioned_folder, tiny_model, ema_decay=(0.9, 0.5))
    check_continues_exactly(made, tmp_path, monkeypatch, f"lora/{LORA_FILE}")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_adapter_alone_moves_and_is_kept(
    optimizer: str, captioned_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[Any] = []
    real = module.prepare_networks
    monkeypatch.setattr(module, "prepare_networks", lambda *given: networks.append(real(*given)) or networks[-1])
    train(recipe(captioned_folder, tiny_model, optimizer={"name": optimizer}), tmp_path / "run")
    network, averages = networks[0]
    before = anystep.load(tiny_model, "cpu").pipeline.transformer.state_dict()
    moved = {name for name, value in network.named_parameters() if ".lora_" in name and bool(value.any())}
    plain = {name.replace(".base_layer", ""): value for name, value in network.state_dict().items()}
    assert all(torch.equal(value, plain[name]) for name, value in before.items())
    assert moved == {name for name in network.state_dict() if ".lora_" in name}
    shared = {id(value) for value in network.parameters() if not value.requires_grad}
    assert shared < {id(value) for value in averages[0].parameters()}
    kept = weights(tmp_path / "run")
    assert {name.split(".")[0] for name in kept} >= {"network", "ema-0", "optimizer"}
    assert all(".lora_" in name for name in kept)
    written = load_file(tmp_path / "run" / "lora" / LORA_FILE)
    assert len(written) == len(moved)
    for name, value in written.items():
        assert torch.equal(value, kept[f"ema-0.{name.removeprefix(PREFIX).replace('.weight', '.default.weight')}"])


def test_an_adapter_is_for_a_model_that_reads_a_guidance_scale_too(
    captioned_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    save_guided(tiny_model, tmp_path / "guided")
    train(recipe(captioned_folder, tmp_path / "guided", run={"steps": 1}), tmp_path / "run")
    model = anystep.load(tmp_path / "guided", "cpu")
    before = model.generate("a red apple", 1, 0, guidance=2.0)
    model.pipeline.load_lora_weights(tmp_path / "run" / "lora")
    after = model.generate("a red apple", 1, 0, guidance=2.0)
    assert (before.nfe, after.nfe) == (1, 1)
    assert before.images[0].tobytes() != after.images[0].tobytes()


def test_the_first_step_is_that_of_the_whole_network(
    captioned_folder: Path, tiny_model: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    """B is zero, so that the answers of the network, and the loss, are those of the model that it begins from."""
    said = on_base(recipe(captioned_folder, tiny_model))
    whole = said.model_copy(update={"lora": None})
    for name, made in (("whole", whole), ("adapter", said)):
        train(made.model_copy(update={"run": made.run.model_copy(update={"steps": 2})}), tmp_path / name)
    (first, second), (first_whole, second_whole) = losses(tmp_path / "adapter"), losses(tmp_path / "whole")
    assert first == first_whole
    assert second != second_whole


def test_what_was_trained_is_loaded_drawn_with_and_fused(
    captioned_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    train(recipe(captioned_folder, tiny_model, run={"sample_every": 4}), tmp_path)
    assert (tmp_path / "samples" / "step-00000004.png").exists()
    assert not (tmp_path / "pipeline").exists()
    pipeline = anystep.load(tiny_model, "cpu").pipeline
    plain = draw(pipeline)
    pipeline.load_lora_weights(tmp_path)
    assert read_lora(tmp_path / "lora" / LORA_FILE).alphas["blocks.0.attn.to_q"] == 4.0
    drawn = draw(pipeline)
    assert not torch.allclose(drawn, plain, atol=1e-2)
    pipeline.fuse_lora()
    torch.testing.assert_close(draw(pipeline), drawn, atol=1e-5, rtol=1e-5)
    told = (tmp_path / "lora" / "README.md").read_text()
    assert f"base_model: {tiny_model}" in told
    assert "license: none" in told
    with pytest.raises(InputError, match="a training run of an adapter: give --lora"):
        anystep.load(tmp_path)


def test_the_page_of_an_adapter_is_code_and_a_command_that_run(
    captioned_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder, prompt = shutil.copytree(tiny_model, tmp_path / 'dog\'s "own": é'), 'a "chalk"\ndrawing'
    network = anystep.load(folder, "cpu").pipeline.transformer
    add_lora(network, 2, 2.0, ["to_q"])
    (tmp_path / "lora").mkdir()
    write_lora(lora_of(network), tmp_path / "lora" / LORA_FILE)
    page = card(BaseModel.open(str(folder)), recipe(captioned_folder, folder, sample_prompts=(prompt,)))
    _, fields, text = page.split("---\n", 2)
    assert yaml.safe_load(fields)["base_model"] == str(folder)
    (command,) = [line for line in text.splitlines() if line.startswith("    anystep")]
    assert shlex.split(command)[2:5] == ['a "chalk" drawing', "--model", str(folder)]
    code = text.split("```python\n")[1].split("```")[0].replace('"THIS_FOLDER"', repr(str(tmp_path / "lora")))
    *lines, last = code.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert eval(last, names).size == (16, 16)


def test_a_run_goes_on_with_the_weights_that_it_was_begun_with(
    captioned_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    train(recipe(captioned_folder, model, run={"steps": 1}), tmp_path / "run")
    other = anystep.load(model, "cpu").pipeline
    other.transformer.blocks[0].attn.to_q.weight.data.add_(1)
    other.save_pretrained(model)
    with pytest.raises(InputError, match=r"holds other weights than the run was begun with"):
        train(recipe(captioned_folder, model, run={"steps": 8}), tmp_path / "run")


def test_the_model_decides_what_the_recipe_leaves_out(captioned_folder: Path, tiny_model: Path) -> None:
    made = on_base(recipe(captioned_folder, tiny_model))
    assert on_base(made) == made
    assert made.data.size == 16
    assert made.model.codec == str(tiny_model / "vae")
    assert made.model.options["hidden_size"] == 32
    assert made.model.options["text_width"] == 384
    assert (made.transport.name, made.transport.base_size) == ("ot_fm", 16)
    builtin = on_base(recipe(captioned_folder, "builtin"))
    assert (builtin.model.preset, builtin.model.codec, builtin.model.text_encoder) == (
        "t2i-emoji",
        "builtin",
        "builtin",
    )
    assert builtin.data.size == 64
    assert on_base(recipe(captioned_folder, "builtin", rank=None)).model.codec == "builtin"
    for said, message in (
        ({"model": {"preset": "t2i-xl"}}, r"model\.preset 't2i-xl': .* of model\.weights, 't2i-emoji'"),
        ({"model": {"codec": "identity"}}, r"model\.codec 'identity': .* of model\.weights, 'builtin'"),
        ({"model": {"options": {"depth": 3}}}, r"model\.options\.depth 3: .* 7; leave it out"),
        ({"transport": {"name": "vp"}}, r"transport\.name 'vp': .*'ot_fm'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            on_base(recipe(captioned_folder, "builtin", **said))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model": {"weights": None}}, "lora needs model.weights"),
        ({"ema_lengths": [0.05]}, "ema_lengths is for whole networks"),
        ({"alignment": {"encoder": "x"}}, "alignment is for whole networks"),
    ],
)
def test_what_does_not_go_with_an_adapter_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("builtin", "builtin", **said)


def test_a_model_that_carries_its_text_encoder_is_adapted(
    captioned_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pipeline = anystep.load(tiny_model, "cpu").pipeline
    pipeline.register_to_config(escape_captions=True, open_guidance_interval=True)
    pipeline.transformer.register_to_config(rope_grid="reference", mask_text=False)  # as of released weights
    pipeline.save_pretrained(tmp_path / "model", carry_text_encoder=True)
    assert BaseModel.open(str(tmp_path / "model")).text_encoder == str(tmp_path / "model")
    made = recipe(captioned_folder, tmp_path / "model", run={"steps": 2})
    options = on_base(made).model.options
    assert (options["rope_grid"], options["mask_text"]) == ("reference", False)
    train(made, tmp_path / "run")
    again = anystep.load(tmp_path / "model", "cpu").pipeline
    again.load_lora_weights(tmp_path / "run")


def test_classes_are_adapted_where_they_are_the_same(tiny_classes: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("ant", "bee", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (80 * number, 90, 10)).save(tmp_path / "data" / name / f"{number}.png")
    train(recipe(f"classes:{tmp_path / 'data'}", tiny_classes, run={"steps": 2}), tmp_path / "run")
    pipeline = anystep.load(tiny_classes, "cpu").pipeline
    pipeline.load_lora_weights(tmp_path / "run")
    draw(pipeline, ["bee"])
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "cow")
    with pytest.raises(
        InputError, match=r"3 classes \['ant', 'bee', 'cow'\]: the model knows 3 classes \['ant', 'bee'"
    ):
        train(recipe(f"classes:{tmp_path / 'data'}", tiny_classes, run={"steps": 2}), tmp_path / "other")


def test_a_dry_run_counts_the_adapter(captioned_folder: Path, tiny_model: Path) -> None:
    adapter = DryRun(recipe(captioned_folder, tiny_model), None)
    whole = budget(adapter.recipe.model_copy(update={"lora": None}))
    count = count_adapter(adapter.recipe)
    assert adapter.budget.checkpoint_bytes == 4 * 4 * count < whole.checkpoint_bytes / 4
    assert adapter.budget.state_bytes == 4 * (whole.parameters + 5 * count)
    assert adapter.describe()["trained"] == f"{count:,} of an adapter"
    assert json.loads(json.dumps(adapter.figures()))["parameters"] == whole.parameters


EXAMPLE = Path(__file__).parents[2] / "examples" / "chalk_pictures.py"


@pytest.mark.slow
def test_twenty_pictures_teach_the_builtin_model_a_style(tmp_path: Path) -> None:
    """Things that no picture of chalk shows are drawn as chalk, and without the words as ever."""
    import runpy

    import numpy as np

    from anystep.training.recipe_files import load_recipe
    from anystep.training.recipes import find_recipe

    assert runpy.run_path(str(EXAMPLE))["draw"](tmp_path / "chalk") == 20
    said = ["--data.source", str(tmp_path / "chalk"), "--run.sample_every", "0", "--run.threads", "1"]
    train(load_recipe(find_recipe("lora"), Recipe, said), tmp_path / "run")
    model = anystep.load("builtin", "cpu")
    prompts = ["a chalk drawing of a whale", "a chalk drawing of a red apple", "a chalk drawing of a dog face"]

    def board(prompts: list[str], steps: int) -> float:
        """The share of pixels that are nearly the colour of the board."""
        pixels = np.stack([np.asarray(image, np.float64) for image in model(prompts, steps=steps, seed=0)])
        return float((np.abs(pixels - [38, 66, 58]).max(-1) < 40).mean())

    before = {steps: board(prompts, steps) for steps in (1, 4)}
    model.pipeline.load_lora_weights(tmp_path / "run")
    for steps, share in before.items():
        assert share < 0.1
        assert board(prompts, steps) > 0.4


def test_an_empty_class_that_the_model_lacks_is_asked_for_in_one_line(tiny_classes: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_classes, tmp_path / "model")
    config = tmp_path / "model" / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "class_dropout_prob": 0.0}))
    with pytest.raises(InputError, match=r"model.weights .*: condition_dropout 0\.1 needs an empty class"):
        on_base(recipe("x", tmp_path / "model", guidance=1.0))
