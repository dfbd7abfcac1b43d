"""Training on images as they are: shapes together or packed, the same on any number of processes, and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import losses

import anystep
from anystep.cli import main
from anystep.pipelines.describe import describe
from anystep.training.config import Recipe
from anystep.training.train import train


def content(source: Path | str, codec: Path, **run: Any) -> dict[str, Any]:
    return {
        "data": {"source": str(source), "size": 16, "native": True},
        "model": {"preset": "t2i-test", "codec": str(codec)},
        "transport": {"base_size": 8},
        "objective": {"diffusion_phase": 0.25},
        "optimizer": {"learning_rate": 1e-2, "warmup": 2},
        "run": {
            "steps": 6, "batch_size": 8, "micro_batches": 2, "checkpoint_every": 2, "sample_every": 0, "log_every": 3,
            "threads": 1, **run,
        },
        "condition_dropout": 0.3,
        "sample_steps": [1],
    }  # fmt: skip


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_native_run_sees_all_shapes_resumes_exactly_and_draws_them(
    pictures: Path, tiny_codec: Path, tmp_path: Path, packed: bool
) -> None:
    recipe = content(pictures, tiny_codec, packed=packed)
    recipe["objective"] = {"diffusion_phase": 0.0}  # which would be a share of the run's length
    train(Recipe.model_validate(recipe), tmp_path / "straight")
    train(Recipe.model_validate({**recipe, "run": {**recipe["run"], "steps": 2}}), tmp_path / "broken")
    train(Recipe.model_validate(recipe), tmp_path / "broken")
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    records = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    about = json.loads((tmp_path / "straight" / "latents-0" / "dataset.json").read_text())
    assert about["captioned"] == 36
    for record in records:
        # two micro-batches of at most the tokens of four squares: six images of a shape are one, or two equal ones
        tokens = record["tokens_per_second"] * record["seconds"]
        assert 60 - 1e-6 < tokens < 128 + 1e-6
    model = anystep.load(tmp_path / "straight")
    assert model("colour number 3", steps=2, size=(32, 8))[0].size == (32, 8)
    assert model.pipeline.transformer.config.rope_extent == 8
    assert set(describe(model)["trained_shapes"]) == {"16x16", "32x8", "24x8", "8x24", "16x8", "8x8"}
    assert model.pipeline.scheduler.config.base_size == 8


def test_squares_are_seen_once_an_epoch(captioned_folder: Path, tiny_codec: Path, tmp_path: Path) -> None:
    recipe = content(captioned_folder, tiny_codec, micro_batches=1)
    train(Recipe.model_validate(recipe), tmp_path / "apart")
    recipe["run"]["packed"] = True
    train(Recipe.model_validate(recipe), tmp_path / "packed")
    lengths = [
        [json.loads(line)["images_per_second"] * json.loads(line)["seconds"] for line in
         (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("apart", "packed")
    ]  # fmt: skip
    assert lengths[0] == pytest.approx([6] * 6)  # twelve images in two steps
    assert sorted(lengths[1]) == pytest.approx([4] * 3 + [8] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"run": {"micro_batches": 3, "packed": True}, "data": {"native": False}},
            "tokens_per_micro_batch, packed, data.longest are for",
        ),
        (
            {"data": {"native": False, "longest": 32}, "run": {"micro_batches": 1}},
            "data.longest are for data.native",
        ),
        ({"run": {"accumulate": 2}}, "accumulate is for squares"),
        ({"data": {"balanced": True}}, "balanced is for squares"),
        (
            {"run": {"tokens_per_micro_batch": 4}},
            "tokens_per_micro_batch 4: expected at least the 16 tokens",
        ),
        ({"data": {"size": 18}}, "must be a multiple of 4"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    pictures: Path, tiny_codec: Path, tmp_path: Path, changes: dict[str, Any], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = content(pictures, tiny_codec)
    for section, values in changes.items():
        recipe[section] |= values
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
