"""The recipes of the package: found by name, every one parses, and its laptop size trains."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from anystep.cli import main
from anystep.compare import Comparison
from anystep.errors import InputError
from anystep.models.released import DC_AE
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import Recipe
from anystep.training.recipe_files import load_recipe
from anystep.training.recipes import FOLDER, command_of, find_recipe, recipe_names

LEARNED_WITH = ("max_time_frequency", "position_embed", "caption_pool")  # weights mean nothing without
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
@pytest.mark.parametrize("debug", [False, True])
def test_every_recipe_parses_in_both_sizes(path: Path, debug: bool) -> None:
    kind = CodecRecipe if path.stem.startswith("codec") else Recipe
    recipe = load_recipe(path, kind, debug=debug)
    assert recipe.run.steps > 0


# whose laptop size is that of another recipe but for a few settings
NEAR = (
    "adapt-flux", "adapt-sd3", "emoji-ours", "imagenet-256-xl2", "imagenet-256-xl2-guided", "imagenet-256-xl2-ours",
    "imagenet-512-xl1", "imagenet-512-xl1-ours", "lora", "scenes", "t2i-865m",
)  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in NEAR else (), id=path.stem) for path in CONFIGS],
)
def test_the_laptop_size_of_every_recipe_takes_three_steps(
    path: Path, tmp_path: Path, baselines: dict[str, Path]
) -> None:
    adapted = path.stem.removeprefix("adapt-") if path.stem.startswith("adapt-") else None
    weights = [] if adapted is None else ["--model.weights", str(baselines[adapted])]
    command = "train-codec" if path.stem.startswith("codec") else "train"
    every = ["--run.log_every", "1", "--run.checkpoint_every", "3", "--run.threads", "1", *weights]
    assert main([command, str(path), "--debug", "--out", str(tmp_path / "run"), "--run.steps", "3", *every]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3]
    assert all(0 < record["loss"] < 100 and record["gradient_norm"] > 0 for record in log)
    made = "codec/config.json" if command == "train-codec" else "pipeline/model_index.json"
    made = "lora/pytorch_lora_weights.safetensors" if path.stem == "lora" else made
    made = "adapted/anystep.safetensors" if adapted else made
    assert (tmp_path / "run" / made).exists()


def test_every_recipe_is_found_by_its_name_and_is_for_its_command() -> None:
    kinds = {"train": Recipe, "train-codec": CodecRecipe, "compare": Comparison}
    names = recipe_names()
    assert {"emoji", "codec-emoji", "compare/fashion-mnist"} <= set(names)
    for name in names:
        path = find_recipe(name.removeprefix("compare/"), command_of(name))
        assert path == find_recipe(name, command_of(name)) == FOLDER / f"{name}.yaml"
        load_recipe(path, kinds[command_of(name)])


def test_published_recipes_train_on_the_latents_of_the_released_models() -> None:
    names = [f"{name}{ours}" for name in ("t2i-865m", "imagenet-512-xl1") for ours in ("", "-ours")]
    assert {load_recipe(find_recipe(name, "train"), Recipe).model.codec for name in names} == {DC_AE}


def test_recipes_that_go_on_from_the_built_in_model_have_the_options_of_its_network() -> None:
    network = json.loads((files("anystep") / "weights/builtin/transformer/config.json").read_text("utf-8"))
    said = re.compile(r"model\.weights builtin|weights: builtin")
    names = [path.stem for path in CONFIGS if said.search(path.read_text("utf-8"))]
    assert {"emoji-native", "scenes", "scenes-native", "lora"} <= set(names)
    for name in {*names, "emoji-guided"} - {"lora"}:  # an adapter has no network of its own
        options = load_recipe(find_recipe(name), Recipe).model.options
        assert {key: options.get(key) for key in LEARNED_WITH} == {key: network[key] for key in LEARNED_WITH}, name


def test_a_file_comes_before_a_name_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    assert find_recipe("emoji", "train") == FOLDER / "emoji.yaml"
    (tmp_path / "scenes").write_text("{}")
    assert find_recipe("scenes", "train") == Path("scenes")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_recipe("~/scenes", "train") == tmp_path / "scenes"


@pytest.mark.parametrize(
    ("given", "command", "message"),
    [
        ("emojii", "train", "did you mean emoji?"),
        ("configs/emoji.yaml", "train", "did you mean emoji?"),
        ("fashion_mnist", "compare", "did you mean compare/fashion-mnist?"),
        ("codec-emoji", "train", "it is for `anystep train-codec`"),
        ("emoji", "train-codec", "it is for `anystep train`"),
        ("xyzzy", "train", "recipe 'xyzzy': there is no such file or recipe; `anystep recipes` lists"),
    ],
)
def test_a_wrong_name_says_what_was_meant(
    given: str, command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find_recipe(given, command)
    assert message in str(caught.value)


def test_recipes_lists_every_recipe_with_its_first_line_and_show_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(recipe_names()) + 1
    assert any(line.startswith("anystep compare fashion-mnist ") and "Every objective" in line for line in lines)
    assert any(line.startswith("anystep train emoji ") and "built-in model's first edition" in line for line in lines)
    assert main(["recipes", "show", "emoji"]) == 0
    assert capsys.readouterr().out == (FOLDER / "emoji.yaml").read_text()
