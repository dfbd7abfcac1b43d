"""A small classifier of the data itself gives features."""

from pathlib import Path

import pytest

from anystep.cli import main
from anystep.evaluation.extractors.registry import load_extractor, try_extractor


def test_a_classifier_learns_its_classes(fashion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train-classifier", f"idx:{fashion}", "--out", str(tmp_path / "f.safetensors"), "--epochs", "20"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert float(shown.split("right on ")[1].split("%")[0]) > 80
    extractor = load_extractor(str(tmp_path / "f.safetensors"))
    assert (extractor.classifies, try_extractor(extractor, 28, 28)) == (True, 128)
    assert main(["train-classifier", str(fashion), "--out", str(tmp_path / "f.safetensors")]) == 2
    (tmp_path / "diary.safetensors").write_text("mine")
    for name in ("f.pt", "diary.safetensors"):
        assert main(["train-classifier", f"idx:{fashion}", "--out", str(tmp_path / name)]) == 2
    assert (tmp_path / "diary.safetensors").read_text() == "mine"
