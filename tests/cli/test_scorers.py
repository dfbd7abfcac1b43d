"""The commands that train networks which evaluations score with."""

from pathlib import Path

import pytest
import torch

from anystep.cli import main
from anystep.errors import InputError
from anystep.evaluation.benchmarks import scene_detector
from anystep.evaluation.extractors import classifier
from anystep.evaluation.metrics import caption_scores


@pytest.mark.parametrize(
    ("command", "module", "trains"),
    [
        (["train-classifier", "classes:x"], classifier, "train_classifier"),
        (["train-alignment"], caption_scores, "train_alignment"),
        (["train-scene-detector"], scene_detector, "train_scene_detector"),
    ],
)
def test_networks_are_trained_on_the_device_that_is_asked_for(
    command: list[str],
    module: object,
    trains: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(*given: object, device: torch.device, **options: object) -> None:
        raise InputError(f"would be trained on {device}")

    monkeypatch.setattr(module, trains, train)
    for device in ("cpu", "cpu:0"):
        assert main([*command, "--device", device, "--out", str(tmp_path / "x.safetensors")]) == 2
        assert f"would be trained on {device}\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
