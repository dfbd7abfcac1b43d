"""Training towards features of frozen image encoders: a loss that falls, and can be switched off."""

import json
from pathlib import Path
from typing import Any

import pytest

from anystep.cli import main
from anystep.errors import InputError
from anystep.training.config import Recipe
from anystep.training.train import train


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
    captioned_folder: Path, tiny_codec: Path, image_encoders: dict[str, Path], tmp_path: Path
) -> None:
    train(recipe(str(captioned_folder), tiny_codec, image_encoders["dinov2"], until=0.7), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    distances = [record["alignment"] for record in records]
    assert distances[3] < distances[0]
    assert distances[5] == 0
    assert min(distances[:4]) > 0


def test_prepared_shards_train_as_the_source_does_and_are_checked(
    captioned_folder: Path, tiny_codec: Path, image_encoders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    shards = tmp_path / "shards"
    words = ["--codec", str(tiny_codec), "--features", str(image_encoders["dinov2"]), "--text-encoder", "builtin"]
    command = ["data", "prepare", str(captioned_folder), "--out", str(shards), "--size", "16", "--shard-size", "5"]
    assert main([*command, *words, "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert "12 examples in 3 shards, 12 with captions, 0 classes\nsizes: 16x16 12\n" in said
    direct, prepared = (
        recipe(source, tiny_codec, image_encoders["dinov2"]) for source in (str(captioned_folder), f"shards:{shards}")
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
        train(recipe(f"shards:{shards}", tiny_codec, image_encoders["registers"]), tmp_path / "other")
    assert main([*command, *words]) == 2
    assert "differ in dtype ('float32', not 'float16')" in capsys.readouterr().err
    assert main([*command[:5], "--size", "18", *words]) == 2
    assert "--size 18: must be a multiple of 4" in capsys.readouterr().err
    assert main(["data", "prepare", f"shards:{shards}", "--out", str(tmp_path / "x"), "--size", "16"]) == 2
    assert "hold no images, but" in capsys.readouterr().err
