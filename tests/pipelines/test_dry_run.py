"""Dry runs: what models cost and what is wrong is found without their weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import refused

from anystep.cli import main
from anystep.pipelines.load_image_model import load_image_model


@pytest.fixture(scope="module")
def empty(baselines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the baselines without any weights."""
    folder = tmp_path_factory.mktemp("empty")
    for name, path in baselines.items():
        shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("*.safetensors"))
    return {name: folder / name for name in baselines}


def light(pooled: Path) -> list[str]:
    """Options of an evaluation that loads little."""
    return ["--samples", "60", "--metrics", "kernel_distance", "--extractor", str(pooled), "--allow-code"]


@pytest.mark.parametrize("name", ["sd3", "flux", "sana", "sana-sprint", "sdxl", "lcm"])
def test_evaluations_and_parameters_are_told_without_weights(
    empty: dict[str, Path], baselines: dict[str, Path], name: str
) -> None:
    hollow, whole = load_image_model(str(empty[name]), hollow=True), load_image_model(str(baselines[name]), "cpu")
    assert hollow.facts()["parameters"] == whole.facts()["parameters"]
    drawn = hollow.draw(["a whale", "a red apple"], 32, 32, 3, [0, 1], output_type="pt")
    assert drawn.nfe == whole.draw(["a whale"], 32, 32, 3, [0]).nfe
    assert drawn.images.shape == (2, 3, 32, 32)


def test_several_models_are_told_side_by_side_and_nothing_is_written(
    empty: dict[str, Path], tiny_model: Path, pooled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(empty["sd3"]), f"{empty['flux']}?plan=uniform", str(tiny_model)]
    asked = ["--steps", "1", "8", "--size", "32", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["evaluate", *light(pooled), "--model", *models, *asked, "--json"]) == 0
    told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["dry_run"]
    assert [model["nfe"] for model in told] == [{"1": 2, "8": 16}, {"1": 1, "8": 8}, {"1": 2, "8": 16}]
    assert [model["pipeline"] for model in told] == ["StableDiffusion3Pipeline", "FluxPipeline", "TransitionPipeline"]
    assert main(["benchmark", "scenes", "--each", "1", "--model", models[1], "--steps", "3", *asked[-3:]]) == 0
    assert "| FluxPipeline | " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_what_would_fail_hours_later_fails_now(
    empty: dict[str, Path], pooled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", *light(pooled), "--out", tmp_path, "--dry-run", "--model"]
    assert "pos_embed_max_size" in refused(capsys, *asked, empty["sd3"], "--size", "64")
    assert "cannot make 128 steps" in refused(capsys, *asked, empty["lcm"], "--size", "32", "--steps", "1", "128")
    shutil.copytree(empty["flux"], tmp_path / "flux")
    shutil.rmtree(tmp_path / "flux" / "tokenizer_2")
    assert "has no folder 'tokenizer_2'" in refused(capsys, *asked, tmp_path / "flux", "--size", "32")
