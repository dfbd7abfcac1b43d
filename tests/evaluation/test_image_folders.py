"""Folders of images that somebody else generated."""

import os
from pathlib import Path

import pytest
from PIL import Image

from anystep.evaluation import image_folders
from anystep.evaluation.extractors.registry import load_extractor
from anystep.evaluation.image_folders import folder_points, list_folders, parse_folder
from anystep.evaluation.settings import Evaluation, MeasurementSettings


def test_folders_of_several_formats_are_noted(captioned_folder: Path, tmp_path: Path) -> None:
    for form in ("png", "jpg"):
        (tmp_path / form).mkdir()
        Image.open(captioned_folder / "00.png").save(tmp_path / form / f"0.{form}")
    listed, notes = list_folders([parse_folder(f"1={tmp_path / 'png'}"), parse_folder(f"2={tmp_path / 'jpg'}")], 1)
    assert [(each.names, each.size) for each in listed] == [(["0.png"], (16, 16)), (["0.jpg"], (16, 16))]
    assert notes == [
        f"Images were kept in several formats (PNG in {tmp_path / 'png'}, JPEG in {tmp_path / 'jpg'}): "
        "compression alone changes figures."
    ]


def test_images_that_are_replaced_with_their_old_times_are_measured_again(
    captioned_folder: Path, pooled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = list[Path](), image_folders._read
    monkeypatch.setattr(image_folders, "_read", lambda path, size: (read.append(path), real(path, size))[1])
    settings = MeasurementSettings(out=tmp_path / "out", samples=1)
    evaluation = Evaluation(settings, load_extractor(str(pooled), "cpu", True), [])
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "0.png"
    for number, expected in ((0, 1), (0, 1), (1, 2)):
        Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 2 + 98 * number).convert("RGB").save(image)
        os.utime(image, ns=(0, 0))
        folder_points(evaluation, list_folders([parse_folder(f"1={image.parent}")], 1)[0])
        assert len(read) == expected
