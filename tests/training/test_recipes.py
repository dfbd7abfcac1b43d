"""The recipes of `configs/`: every one parses, and its laptop size trains."""

import json
from pathlib import Path

import pytest

from anystep.cli import main
from anystep.training.config import CodecRecipe, Recipe, load_recipe

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
@pytest.mark.parametrize("debug", [False, True])
def test_every_recipe_parses_in_both_sizes(path: Path, debug: bool) -> None:
    kind = CodecRecipe if path.stem.startswith("codec") else Recipe
    recipe = load_recipe(path, kind, debug=debug)
    assert recipe.run.steps > 0


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_the_laptop_size_of_every_recipe_takes_three_steps(path: Path, tmp_path: Path) -> None:
    command = "train-codec" if path.stem.startswith("codec") else "train"
    every = ["--run.log_every", "1", "--run.checkpoint_every", "3", "--run.threads", "1"]
    assert main([command, str(path), "--debug", "--out", str(tmp_path / "run"), "--run.steps", "3", *every]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3]
    assert all(0 < record["loss"] < 100 and record["gradient_norm"] > 0 for record in log)
    made = "codec/config.json" if command == "train-codec" else "pipeline/model_index.json"
    assert (tmp_path / "run" / made).exists()
